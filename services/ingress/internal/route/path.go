package route

import (
	"strings"

	"podwire.dev/internal/errs"
)

// encodedSlash stands for %2F in a decoded path: a slash that separates nothing. %00 is refused, so nothing else is it.
const encodedSlash = '\x00'

// Path is a request's path, understood once for matching and for the endpoint.
type Path struct {
	raw     string // as it came, percent-encoded
	decoded string // decoded; empty segments and dot segments resolved; %2F is encodedSlash
	// slashed is decoded with %2F and backslashes as separators, as some servers read it; empty where there are none.
	slashed string
	// resolved says that dot segments were resolved, so that the endpoint is to get the result.
	resolved bool
}

// ParsePath reads the percent-encoded path of a request (RFC 3986 section 3.3). Dot segments are resolved, encoded ones
// alike; empty segments count for nothing in matching. Invalid are: a path that does not begin with a slash, leads above
// the root, has a broken or a NUL escape or a control character, and one that hides dot segments behind encoded slashes,
// backslashes or path parameters, which servers read in different ways.
func ParsePath(escaped string) (Path, error) {
	if escaped == "" {
		escaped = "/"
	}
	if escaped[0] != '/' {
		return Path{}, errs.New(errs.Invalid, "path %q: must begin with '/'", clip(escaped))
	}
	if isPlain(escaped) {
		return Path{raw: escaped, decoded: escaped}, nil
	}
	text, err := decode(escaped)
	if err != nil {
		return Path{}, err
	}
	p := Path{raw: escaped}
	if p.decoded, p.resolved, err = clean(text); err != nil {
		return Path{}, err
	}
	if strings.ContainsAny(p.decoded, "\x00\\") {
		if err := checkHidden(p.decoded); err != nil {
			return Path{}, err
		}
		p.slashed, _, err = clean(strings.NewReplacer("\x00", "/", `\`, "/").Replace(p.decoded))
	}
	return p, err
}

// isPlain says whether a path needs neither decoding nor cleaning. Everything else takes the slow way.
func isPlain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '%' || c == '\\' || c < 0x20 || c == 0x7f:
			return false
		case c == '/' && i+1 < len(s) && (s[i+1] == '/' || s[i+1] == '.'):
			return false
		}
	}
	return true
}

func decode(s string) (string, error) {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c < 0x20 || c == 0x7f {
			return "", errs.New(errs.Invalid, "path %q: has a control character", clip(s))
		}
		if c != '%' {
			b.WriteByte(c)
			continue
		}
		if i+2 >= len(s) || hex(s[i+1]) < 0 || hex(s[i+2]) < 0 {
			return "", errs.New(errs.Invalid, "path %q: has a '%%' that two hexadecimal digits do not follow", clip(s))
		}
		c = byte(hex(s[i+1])<<4 | hex(s[i+2]))
		i += 2
		switch c {
		case 0:
			return "", errs.New(errs.Invalid, "path %q: has a NUL character", clip(s))
		case '/':
			c = encodedSlash
		}
		b.WriteByte(c)
	}
	return b.String(), nil
}

func hex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// clean drops empty segments and resolves dot segments (RFC 3986 section 5.2.4). A trailing slash stays.
func clean(text string) (cleaned string, resolved bool, err error) {
	var kept []string
	ends := false // with a slash
	for segment := range strings.SplitSeq(text[1:], "/") {
		ends = true
		switch segment {
		case "":
		case ".":
			resolved = true
		case "..":
			if resolved = true; len(kept) == 0 {
				return "", false, errs.New(errs.Invalid, "path %q: leads above the root", clip(text))
			}
			kept = kept[:len(kept)-1]
		default:
			if name, _, ok := strings.Cut(segment, ";"); ok && isDots(name) {
				return "", false, errs.New(errs.Invalid, "path %q: has a dot segment with parameters, which servers read in different ways", clip(text))
			}
			kept, ends = append(kept, segment), false
		}
	}
	cleaned = "/" + strings.Join(kept, "/")
	if ends && len(kept) > 0 {
		cleaned += "/"
	}
	return cleaned, resolved, nil
}

// checkHidden refuses dot segments that only show once encoded slashes or backslashes are read as separators.
func checkHidden(decoded string) error {
	for part := range strings.FieldsFuncSeq(decoded, func(r rune) bool { return r == '/' || r == '\\' || r == encodedSlash }) {
		if name, _, _ := strings.Cut(part, ";"); isDots(name) {
			return errs.New(errs.Invalid, "path %q: hides a dot segment behind an encoded slash or a backslash", clip(encode(decoded)))
		}
	}
	return nil
}

func isDots(s string) bool { return s == "." || s == ".." }

// encode writes a decoded path with percent-encoding where RFC 3986 wants it.
func encode(decoded string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	b.Grow(len(decoded) + 8)
	for i := range len(decoded) {
		switch c := decoded[i]; {
		case c == encodedSlash:
			b.WriteString("%2F")
		case isPathByte(c):
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}

// isPathByte says whether a byte stands for itself in a path: unreserved, sub-delims, ':', '@' and '/'.
func isPathByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("-._~!$&'()*+,;=:@/", c) >= 0
}

// forward is the path that the endpoint gets where no rewrite asks for another: as it came, unless dot segments had to be
// resolved, so that the endpoint does not resolve them differently.
func (p Path) forward() string {
	if p.resolved {
		return encode(p.decoded)
	}
	return p.raw
}

// clip bounds what a client's text may occupy in an answer or a log.
func clip(s string) string {
	const limit = 128
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}

package manifest

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// appendJSON prints a value as indented JSON; sep is the line break with the
// indentation of the line that the value is on.
func appendJSON(dst []byte, v outValue, sep string) []byte {
	switch v.kind {
	case outBare:
		return append(dst, v.text...)
	case outString:
		return appendQuoted(dst, v.text)
	}
	open, end := byte('['), byte(']')
	if v.kind == outObject {
		open, end = '{', '}'
	}
	dst = append(dst, open)
	for i, item := range v.items {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, sep...)
		dst = append(dst, "    "...)
		if v.kind == outObject {
			dst = append(appendQuoted(dst, v.names[i]), ": "...)
		}
		dst = appendJSON(dst, item, sep+"    ")
	}
	if len(v.items) > 0 {
		dst = append(dst, sep...)
	}
	return append(dst, end)
}

const hexDigits = "0123456789abcdef"

// appendQuoted prints a string in double quotes, in a form that JSON and YAML
// read alike: control and invisible characters as \u, and nothing beyond 16 bits
// escaped, since that is where the two differ.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', byte(c))
		case c == '\n':
			dst = append(dst, `\n`...)
		case c == '\t':
			dst = append(dst, `\t`...)
		case c == '\r':
			dst = append(dst, `\r`...)
		case c < 0x10000 && (!unicode.IsPrint(c) && c != ' '):
			dst = append(dst, '\\', 'u', hexDigits[c>>12&15], hexDigits[c>>8&15], hexDigits[c>>4&15], hexDigits[c&15])
		default:
			dst = utf8.AppendRune(dst, c)
		}
	}
	return append(dst, '"')
}

// appendYAML prints a document in kubectl's style: two spaces, and lists no
// deeper than the name they belong to.
func appendYAML(dst []byte, v outValue) []byte {
	p := yamlPrinter{scalars: newScalars(), out: dst}
	switch {
	case v.kind == outBare || v.kind == outString || len(v.items) == 0:
		p.inline(v, 0)
	default:
		p.block(v, 0)
		return p.out
	}
	return append(p.out, '\n')
}

type yamlPrinter struct {
	scalars scalars
	out     []byte
}

func (p *yamlPrinter) indent(n int) {
	for range n {
		p.out = append(p.out, ' ')
	}
}

// block prints the entries of a list or object that has some, beginning where the
// first line's indentation has been printed by the caller if it is within a list.
func (p *yamlPrinter) block(v outValue, depth int) {
	for i, item := range v.items {
		if i > 0 {
			p.indent(depth)
		}
		if v.kind == outList {
			p.out = append(p.out, "- "...)
			p.entry(item, depth+2)
			continue
		}
		p.name(v.names[i], depth)
		switch {
		case item.kind == outObject && len(item.items) > 0:
			p.out = append(p.out, '\n')
			p.indent(depth + 2)
			p.block(item, depth+2)
		case item.kind == outList && len(item.items) > 0:
			p.out = append(p.out, '\n')
			p.indent(depth)
			p.block(item, depth)
		default:
			p.out = append(p.out, ' ')
			p.inline(item, depth+2)
			p.out = append(p.out, '\n')
		}
	}
}

// longestKey is less than the 1024 characters within which YAML looks for the
// colon after a key; a longer key is announced by a question mark.
const longestKey = 1000

func (p *yamlPrinter) name(name string, depth int) {
	at := len(p.out)
	p.scalar(name, depth, inKey)
	if len(p.out)-at > longestKey {
		p.out = append(slices.Insert(p.out, at, '?', ' '), '\n')
		p.indent(depth)
	}
	p.out = append(p.out, ':')
}

// entry prints an element of a list after its dash.
func (p *yamlPrinter) entry(item outValue, depth int) {
	if item.kind != outBare && item.kind != outString && len(item.items) > 0 {
		p.block(item, depth)
		return
	}
	p.inline(item, depth)
	p.out = append(p.out, '\n')
}

func (p *yamlPrinter) inline(v outValue, depth int) {
	switch v.kind {
	case outBare:
		p.out = append(p.out, v.text...)
	case outString:
		p.scalar(v.text, depth, inValue)
	case outList:
		p.out = append(p.out, "[]"...)
	case outObject:
		p.out = append(p.out, "{}"...)
	}
}

// place says where a string stands: a key has to fit on one line.
type place uint8

const (
	inValue place = iota
	inKey
)

// scalar prints a string plain where every reader takes it for the same string, as
// a block where it is readable text of several lines, else in double quotes.
func (p *yamlPrinter) scalar(s string, depth int, at place) {
	switch {
	case p.plain(s):
		p.out = append(p.out, s...)
	case at == inValue && literal(s):
		p.out = append(p.out, '|')
		if !strings.HasSuffix(s, "\n") {
			p.out = append(p.out, '-')
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(s, "\n"), "\n") {
			p.out = append(p.out, '\n')
			if line != "" {
				p.indent(depth)
				p.out = append(p.out, line...)
			}
		}
	default:
		p.out = appendQuoted(p.out, s)
	}
}

// plain says whether a string needs no quotes. It is stricter than YAML asks for:
// readers of YAML 1.1 and 1.2 must agree.
func (p *yamlPrinter) plain(s string) bool {
	if s == "" || len(s) > 256 || p.scalars.plain(s).kind != stringNode || s == "<<" || s == "=" {
		return false
	}
	for i, c := range s {
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c == '/':
		case '0' <= c && c <= '9':
			// 12:30 is a number, and 2001-12-14 a date, to some readers.
			if i == 0 && (strings.Contains(s, ":") || strings.Count(s, "-") > 1) {
				return false
			}
		case i == 0:
			return false
		case strings.ContainsRune("-.+$@()=;~^", c):
		case c == ':':
			if i+1 == len(s) || s[i+1] == ' ' || s[i+1] == '\t' {
				return false
			}
		case c == ' ':
			if i+1 == len(s) || s[i+1] == '#' || s[i+1] == ' ' {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// literal says whether a string can stand as a block (|) and come back unchanged.
func literal(s string) bool {
	body := strings.TrimSuffix(s, "\n")
	if !strings.Contains(s, "\n") || body == "" || strings.HasSuffix(body, "\n") || body[0] == ' ' || body[0] == '\n' {
		return false
	}
	for _, c := range body {
		if c != '\n' && c != '\t' && (!unicode.IsPrint(c) || c > unicode.MaxLatin1) {
			return false
		}
	}
	for line := range strings.SplitSeq(body, "\n") {
		if strings.TrimRight(line, " \t") != line || strings.HasPrefix(line, "\t") {
			return false
		}
	}
	return true
}

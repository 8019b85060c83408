package route

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Protocol is what an endpoint speaks.
type Protocol uint8

// The protocols. A Service port's appProtocol says so, or the annotation backend-protocol, which wins.
const (
	HTTP  Protocol = iota // HTTP/1.1
	HTTPS                 // HTTP/1.1 over TLS, certificates not verified
	H2C                   // HTTP/2 with prior knowledge: gRPC
	H2                    // HTTP/2 over TLS, certificates not verified: gRPC
)

// String is the name in reasons.
func (p Protocol) String() string { return [...]string{"HTTP", "HTTPS", "GRPC", "GRPCS"}[p] }

// prefix is that of the annotations that people bring from ingress-nginx.
const prefix = "nginx.ingress.kubernetes.io/"

// Options are what the annotations of one Ingress ask for. The zero value asks for nothing, but for a redirect to HTTPS
// where the host has TLS.
type Options struct {
	// Rewrite is the path (and query) that the endpoint gets instead, with $1…$9; empty for none.
	Rewrite string
	// Regex says that paths with the characters of a regular expression are one.
	Regex bool
	// KeepHTTP turns the redirect to HTTPS off, ForceHTTPS on even where the host has no TLS here.
	KeepHTTP, ForceHTTPS bool
	// AppRoot is where a request for "/" is sent (302).
	AppRoot string
	// Redirect is where every request is sent, with RedirectCode.
	Redirect     string
	RedirectCode int
	// Protocol is what the endpoints speak; only where HasProtocol.
	Protocol    Protocol
	HasProtocol bool
	// BodyBytes is the largest request body; 0 is the server's own limit, -1 none.
	BodyBytes int64
	// ReadTimeout is how long an endpoint may take to begin its response; 0 is the server's own.
	ReadTimeout time.Duration
	// Allow, where not empty, are the only clients that are served; Deny are never.
	Allow, Deny []netip.Prefix
	// ForwardedPrefix is sent as X-Forwarded-Prefix.
	ForwardedPrefix string
	// VHost is sent as Host.
	VHost string
	CORS  *CORS
	// Canary says that the rules are a second opinion on those of another Ingress, which nobody asks for here.
	Canary bool
	// Refused says why no request is served: an annotation asks for a protection that does not exist here, or is wrong.
	Refused string
	// Unsupported are annotations without effect, sorted.
	Unsupported []string
}

// CORS is what is said to browsers about other origins.
type CORS struct {
	Origins       []string // "*", or origins; one label may be "*", as in https://*.example.com
	Methods       string
	Headers       string
	Expose        string
	NoCredentials bool
	MaxAge        string
}

// parser collects what is wrong with one Ingress' annotations.
type parser struct {
	all map[string]string
	o   Options
}

func parseOptions(annotations map[string]string) Options {
	p := parser{all: annotations}
	p.o.Rewrite = p.path("rewrite-target")
	p.o.Regex = p.bool("use-regex") || p.o.Rewrite != ""
	p.o.KeepHTTP = p.text("ssl-redirect") != "" && !p.bool("ssl-redirect")
	p.o.ForceHTTPS = p.bool("force-ssl-redirect")
	p.o.Canary = p.bool("canary")
	p.o.AppRoot = p.path("app-root")
	p.o.ForwardedPrefix = p.header("x-forwarded-prefix")
	p.o.VHost = p.header("upstream-vhost")
	p.redirects()
	p.protocol()
	p.limits()
	p.o.Allow = p.ranges("whitelist-source-range")
	if list := p.ranges("allowlist-source-range"); len(list) > 0 {
		p.o.Allow = list
	}
	p.o.Deny = p.ranges("denylist-source-range")
	p.cors()
	p.others()
	return p.o
}

func (p *parser) text(name string) string { return strings.TrimSpace(p.all[prefix+name]) }

func (p *parser) refuse(name, why string) {
	if p.o.Refused == "" {
		p.o.Refused = "annotation " + prefix + name + ": " + why
	}
}

func (p *parser) bool(name string) bool {
	switch text := p.text(name); text {
	case "true":
		return true
	case "", "false":
	default:
		p.refuse(name, strconv.Quote(text)+` must be "true" or "false"`)
	}
	return false
}

func (p *parser) path(name string) string {
	text := p.text(name)
	if text != "" && (text[0] != '/' || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f })) {
		p.refuse(name, strconv.Quote(text)+" must be a path that begins with '/', without spaces")
		return ""
	}
	return text
}

func (p *parser) header(name string) string {
	text := p.text(name)
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		p.refuse(name, strconv.Quote(text)+" must be visible ASCII without spaces")
		return ""
	}
	return text
}

func (p *parser) redirects() {
	for _, kind := range []struct {
		name string
		code int
	}{{"temporal-redirect", 302}, {"permanent-redirect", 301}} { // ingress-nginx: the temporal one wins
		to := p.header(kind.name)
		code := kind.code
		if text := p.text(kind.name + "-code"); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 300 || n > 308 {
				p.refuse(kind.name+"-code", strconv.Quote(text)+" must be between 300 and 308")
			}
			code = n
		}
		if to != "" && p.o.Redirect == "" {
			p.o.Redirect, p.o.RedirectCode = to, code
		}
	}
}

func (p *parser) protocol() {
	text := p.text("backend-protocol")
	of := map[string]Protocol{"HTTP": HTTP, "AUTO_HTTP": HTTP, "HTTPS": HTTPS, "GRPC": H2C, "GRPCS": H2}
	switch protocol, ok := of[strings.ToUpper(text)]; {
	case ok:
		p.o.Protocol, p.o.HasProtocol = protocol, true
	case text != "":
		p.refuse("backend-protocol", strconv.Quote(text)+" must be HTTP, HTTPS, GRPC or GRPCS")
	}
}

func (p *parser) limits() {
	if text := p.text("proxy-body-size"); text != "" {
		n, ok := parseSize(text)
		if !ok {
			p.refuse("proxy-body-size", strconv.Quote(text)+" must be a number of bytes, or of k, m or g")
		}
		if p.o.BodyBytes = n; n == 0 {
			p.o.BodyBytes = -1 // nginx: 0 turns the limit off
		}
	}
	if text := p.text("proxy-read-timeout"); text != "" {
		n, err := strconv.Atoi(strings.TrimSuffix(text, "s"))
		if err != nil || n < 1 || n > 365*24*3600 {
			p.refuse("proxy-read-timeout", strconv.Quote(text)+" must be a number of seconds")
		}
		p.o.ReadTimeout = time.Duration(n) * time.Second
	}
}

// parseSize reads nginx' sizes.
func parseSize(text string) (int64, bool) {
	unit := int64(1)
	switch text[len(text)-1] {
	case 'k', 'K':
		unit = 1 << 10
	case 'm', 'M':
		unit = 1 << 20
	case 'g', 'G':
		unit = 1 << 30
	}
	if unit > 1 {
		text = text[:len(text)-1]
	}
	n, err := strconv.ParseUint(text, 10, 32)
	return int64(n) * unit, err == nil
}

func (p *parser) ranges(name string) []netip.Prefix {
	var out []netip.Prefix
	for text := range strings.SplitSeq(p.text(name), ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		r, err := netip.ParsePrefix(text)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(text); err == nil {
				r = netip.PrefixFrom(a, a.BitLen())
			}
		}
		if err != nil {
			p.refuse(name, strconv.Quote(text)+" must be an address or a range such as 10.0.0.0/8")
			continue
		}
		out = append(out, r.Masked())
	}
	return out
}

func (p *parser) cors() {
	if !p.bool("enable-cors") {
		return
	}
	or := func(name, otherwise string) string {
		if text := p.text(name); text != "" && !strings.ContainsAny(text, "\r\n") {
			return text
		}
		return otherwise
	}
	p.o.CORS = &CORS{
		Methods: or("cors-allow-methods", "GET, PUT, POST, DELETE, PATCH, OPTIONS"),
		Headers: or("cors-allow-headers", "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range,Authorization"),
		Expose:  or("cors-expose-headers", ""), MaxAge: or("cors-max-age", "1728000"),
		NoCredentials: p.text("cors-allow-credentials") != "" && !p.bool("cors-allow-credentials"),
	}
	for origin := range strings.SplitSeq(or("cors-allow-origin", "*"), ",") {
		p.o.CORS.Origins = append(p.o.CORS.Origins, strings.TrimSpace(origin))
	}
}

// others judges the annotations that have no effect of their own here.
func (p *parser) others() {
	for key, value := range p.all {
		name, ok := strings.CutPrefix(key, prefix)
		if !ok || value == "" {
			continue
		}
		switch a := annotations[name]; {
		case a.Support == Closed && value != a.harmless:
			p.refuse(name, "is not supported, and without it requests would get through that are not meant to")
		case a.Support != Supported && a.Support != Approximated && a.Support != Moot:
			p.o.Unsupported = append(p.o.Unsupported, key)
		}
	}
	slices.Sort(p.o.Unsupported)
}

// Allows says whether a client may use the Ingress.
func (o *Options) Allows(client netip.Addr) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(client.Unmap()) })
	}
	if len(o.Deny) > 0 && in(o.Deny) {
		return false
	}
	return len(o.Allow) == 0 || in(o.Allow)
}

// Origin is what Access-Control-Allow-Origin says to an origin; empty where it is not allowed.
func (c *CORS) Origin(origin string) string {
	for _, allowed := range c.Origins {
		if allowed == "*" {
			if c.NoCredentials {
				return "*"
			}
			return origin // browsers take no "*" together with credentials
		}
		if strings.EqualFold(allowed, origin) {
			return origin
		}
		before, after, wild := strings.Cut(allowed, "*")
		if wild && len(origin) > len(before)+len(after) && strings.HasPrefix(origin, before) && strings.HasSuffix(origin, after) {
			label := origin[len(before) : len(origin)-len(after)]
			if !strings.ContainsAny(label, "./:") {
				return origin
			}
		}
	}
	return ""
}

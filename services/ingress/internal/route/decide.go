package route

import (
	"net/netip"
	"strconv"
	"strings"
)

// Request is what a route is chosen by.
type Request struct {
	// Host is the Host header; a port in it is ignored.
	Host string
	// Path is the parsed path.
	Path Path
	// Query is the query as it came, without the question mark.
	Query string
	// TLS says that it arrived over TLS.
	TLS bool
	// Client is who asks; invalid where nobody in particular does, which no list of addresses keeps out.
	Client netip.Addr
}

// Kind is what matched.
type Kind uint8

// The kinds.
const (
	None      Kind = iota // no rule and no default backend, or the path was refused
	ByRule                // a path of a rule
	ByDefault             // the default backend of an Ingress
)

// Code is why the ingress answers itself, as a CamelCase word.
type Code string

// The codes.
const (
	NoRoute       Code = "NoRoute"
	AmbiguousPath Code = "AmbiguousPath"
	BadPath       Code = "BadPath"
	NotServed     Code = "NotServed"
	NoEndpoints   Code = "NoEndpoints"
	Forbidden     Code = "ClientNotAllowed"
	Redirected    Code = "Redirect"
)

// Decision is what happens to a request.
type Decision struct {
	Kind Kind
	// Route is nil where Kind is None.
	Route *Route
	// Backend is the index of the route's backend in [Table.Backends]; -1 where Route is nil.
	Backend int
	// Path and Query are what the endpoint gets, encoded.
	Path, Query string
	// Status is the HTTP status that the ingress answers itself; 0 where an endpoint answers.
	Status int
	// Code says why Status.
	Code Code
	// Location is where a redirect leads.
	Location string
}

// Decide says what happens to a request.
func (t *Table) Decide(q Request) Decision {
	name := Hostname(q.Host)
	d := Decision{Backend: -1}
	d.Route, d.Kind = t.find(name, q.Path.decoded)
	if q.Path.slashed != "" {
		if other, _ := t.find(name, q.Path.slashed); other != d.Route {
			return Decision{Backend: -1, Status: 400, Code: AmbiguousPath}
		}
	}
	if d.Route == nil {
		d.Status, d.Code = 404, NoRoute
		return d
	}
	r := d.Route
	o := r.Options
	d.Backend, d.Path, d.Query = r.backend, q.Path.forward(), q.Query
	switch {
	case r.problem != "":
		d.Status, d.Code = 503, NotServed
	case q.Client.IsValid() && !o.Allows(q.Client):
		d.Status, d.Code = 403, Forbidden
	case !q.TLS && (o.ForceHTTPS || !o.KeepHTTP && (r.tls || t.hasTLS(name))):
		d.redirect(308, "https://"+bracketed(name)+pathAndQuery(q.Path.forward(), q.Query))
	case o.Redirect != "":
		d.redirect(o.RedirectCode, o.Redirect)
	case o.AppRoot != "" && q.Path.decoded == "/":
		d.redirect(302, o.AppRoot)
	default:
		if o.Rewrite != "" {
			d.rewrite(q)
		}
		if len(t.backends[r.backend].Endpoints) == 0 {
			d.Status, d.Code = 503, NoEndpoints
		}
	}
	return d
}

func (d *Decision) redirect(status int, to string) {
	d.Status, d.Code, d.Location = status, Redirected, to
}

func pathAndQuery(path, query string) string {
	if query == "" {
		return path
	}
	return path + "?" + query
}

// bracketed is a host as it stands in a URL.
func bracketed(name string) string {
	if strings.Contains(name, ":") {
		return "[" + name + "]"
	}
	return name
}

// rewrite is nginx' `rewrite "(?i)PATH" TARGET break`: the target takes the place of the whole path, not of what matched.
func (d *Decision) rewrite(q Request) {
	target, query, hasQuery := strings.Cut(d.Route.Options.Rewrite, "?")
	var groups []int
	if d.Route.regex != nil {
		groups = d.Route.regex.FindStringSubmatchIndex(q.Path.decoded)
	}
	expand := func(template string) string {
		var b strings.Builder
		for i := 0; i < len(template); i++ {
			if n := i + 1; template[i] == '$' && n < len(template) && '0' <= template[n] && template[n] <= '9' {
				if g := int(template[n] - '0'); 2*g+1 < len(groups) && groups[2*g] >= 0 {
					b.WriteString(q.Path.decoded[groups[2*g]:groups[2*g+1]])
				}
				i++
				continue
			}
			b.WriteByte(template[i])
		}
		return b.String()
	}
	path := expand(target)
	// A capture may begin or end anywhere, so that what it makes is cleaned as what a client sends.
	cleaned, _, err := clean("/" + strings.TrimLeft(path, "/"))
	if err != nil {
		d.Status, d.Code = 400, BadPath
		return
	}
	d.Path = encode(cleaned)
	if hasQuery {
		d.Query = encodeQuery(expand(query))
		if q.Query != "" {
			d.Query += "&" + q.Query
		}
	}
}

// encodeQuery encodes what must not stand in a query as it is.
func encodeQuery(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c != '#' && (isPathByte(c) || c == '?' || c == '%') {
			b.WriteByte(c)
		} else {
			b.WriteString(encode(text[i : i+1]))
		}
	}
	return b.String()
}

// Hostname is a Host header as rules name it: in lower case, without a port, brackets and a final dot.
func Hostname(header string) string {
	name := header
	if strings.HasPrefix(name, "[") {
		name, _, _ = strings.Cut(name[1:], "]")
	} else if i := strings.IndexByte(name, ':'); i >= 0 {
		name = name[:i]
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// find is the route of a path. A host's rules come first, then those of its wildcard, then those without a host; what
// none of them matches goes to a default backend.
func (t *Table) find(name, path string) (*Route, Kind) {
	var candidates [3]*host
	candidates[0] = t.exact[name]
	if i := strings.IndexByte(name, '.'); i > 0 {
		candidates[1] = t.wild[name[i:]]
	}
	candidates[2] = t.every
	for _, h := range candidates {
		if h == nil {
			continue
		}
		if r := h.match(path); r != nil {
			return r, ByRule
		}
	}
	for _, h := range candidates {
		if h != nil && h.fallback != nil {
			return h.fallback, ByDefault
		}
	}
	if t.fallback != nil {
		return t.fallback, ByDefault
	}
	return nil, None
}

// match is the route of a path among a host's rules: Exact first, then the longest.
func (h *host) match(path string) *Route {
	if r := h.exact[path]; r != nil {
		return r
	}
	var best *Route
	for key := strings.TrimSuffix(path, "/"); ; key = key[:strings.LastIndexByte(key, '/')] {
		if len(key) <= h.longest {
			if best = h.prefixes[key]; best != nil {
				break
			}
		}
		if key == "" {
			break
		}
	}
	for _, r := range h.regexes {
		if best != nil && len(r.Path) <= len(best.Path) {
			break
		}
		if r.regex.MatchString(path) {
			return r
		}
	}
	return best
}

// hasTLS says whether an Ingress has TLS for a host by name.
func (t *Table) hasTLS(name string) bool { return t.named(name) != nil }

func (t *Table) named(name string) *Certificate {
	if c := t.certs[name]; c != nil {
		return c
	}
	if i := strings.IndexByte(name, '.'); i > 0 {
		return t.wildCerts[name[i:]]
	}
	return nil
}

// Certificate says what a client is shown that asks for a server name (RFC 6066); nil is the server's own certificate.
func (t *Table) Certificate(serverName string) *Certificate {
	if c := t.named(Hostname(serverName)); c != nil {
		return c
	}
	return t.certElse
}

// Reason puts a decision into words.
func (t *Table) Reason(q Request, d Decision) string {
	if d.Code == AmbiguousPath {
		return "the path has an encoded slash or a backslash, and leads elsewhere where an endpoint reads that as a separator: refused"
	}
	if d.Route == nil {
		return "no rule for host " + strconv.Quote(Hostname(q.Host)) + " matches the path " + strconv.Quote(encode(q.Path.decoded)) + ", and no Ingress has a default backend"
	}
	b := &t.backends[d.Backend]
	why := d.Route.String()
	switch d.Code {
	case NotServed:
		return why + ": " + d.Route.problem
	case Forbidden:
		return why + ": " + q.Client.String() + " is not among the clients that its annotations allow"
	case BadPath:
		return why + ": the rewritten path leads above the root"
	case NoEndpoints:
		return why + ": " + b.Problem
	case Redirected:
		return why + ": redirected to " + d.Location
	}
	plural := "s"
	if len(b.Endpoints) == 1 {
		plural = ""
	}
	why += " leads to " + strconv.Itoa(len(b.Endpoints)) + " endpoint" + plural + " of Service " + b.Service.String() + " port " + b.Port
	if n := len(d.Route.Options.Unsupported); n > 0 {
		why += "; without effect: " + strings.Join(d.Route.Options.Unsupported, ", ")
	}
	return why
}

// String names the route: the Ingress, the field, and what it matches.
func (r *Route) String() string {
	if r.Type == "" {
		return r.Ingress.String() + " " + r.Field
	}
	kind := string(r.Type)
	if r.regex != nil {
		kind = "regular expression"
	}
	return r.Ingress.String() + " " + r.Field + " (" + kind + " " + r.Path + ")"
}

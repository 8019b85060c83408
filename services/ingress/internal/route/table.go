package route

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// Table says where requests go. It never changes.
type Table struct {
	*rules
	backends []Backend
}

// rules is the part of a Table that endpoints have no part in.
type rules struct {
	exact map[string]*host // by host
	wild  map[string]*host // by what follows the first label, with its dot
	every *host            // rules without a host
	// fallback is the default backend of the oldest Ingress that has one.
	fallback *Route

	certs     map[string]*Certificate // by host
	wildCerts map[string]*Certificate
	certElse  *Certificate // of the oldest entry of spec.tls without hosts
	problems  []Problem
}

// host are the rules for one host.
type host struct {
	exact    map[string]*Route
	prefixes map[string]*Route // without the trailing slash
	longest  int               // of the keys of prefixes
	regexes  []*Route          // the longest first
	fallback *Route            // default backend of the oldest Ingress with a rule for the host
}

// Route is one path of one rule, or a default backend.
type Route struct {
	Ingress Ref
	// Field is the rule's path in the Ingress: spec.rules[0].http.paths[1], spec.defaultBackend.
	Field string
	// Host, Path and Type are the rule's; empty for a default backend.
	Host, Path string
	Type       PathType
	Options    *Options

	backend int // index
	regex   *regexp.Regexp
	tls     bool // the Ingress has TLS for whatever host
	problem string
}

// Certificate is what a client is shown for a server name.
type Certificate struct {
	Ingress Ref
	Field   string // spec.tls[0]
	// Secret is empty for the server's own certificate.
	Secret Ref
	// Problem says why the Secret is not used, but the server's own certificate.
	Problem string
}

// Problem is one thing of an Ingress that does not work.
type Problem struct {
	Ingress Ref
	// Field is its path in the Ingress.
	Field  string
	Reason string
}

// Problems are what does not work however requests look; what an endpoint lacks is in the backends.
func (t *Table) Problems() []Problem { return t.problems }

// Backends are the ports of Services that routes lead to, by their index in [Decision.Backend].
func (t *Table) Backends() []Backend { return t.backends }

// builder makes a Table.
type builder struct {
	w     *World
	t     *Table
	index map[backendKey]int
	// regexes is how large the regular expressions of an Ingress are together.
	regexes map[Ref]int
}

func (w *World) build() *Table {
	b := builder{w: w, index: map[backendKey]int{}, regexes: map[Ref]int{}, t: &Table{rules: &rules{
		exact: map[string]*host{}, wild: map[string]*host{}, certs: map[string]*Certificate{}, wildCerts: map[string]*Certificate{},
	}}}
	for _, in := range sortedIngresses(w.ingresses) {
		if w.ours(in) {
			b.add(in)
		}
	}
	for _, h := range b.hosts() {
		slices.SortStableFunc(h.regexes, func(a, c *Route) int { return cmp.Compare(len(c.Path), len(a.Path)) })
	}
	return b.t
}

func (b *builder) hosts() []*host {
	var out []*host
	for _, h := range b.t.exact {
		out = append(out, h)
	}
	for _, h := range b.t.wild {
		out = append(out, h)
	}
	if b.t.every != nil {
		out = append(out, b.t.every)
	}
	return out
}

func (b *builder) problem(in *Ingress, field, reason string) {
	b.t.problems = append(b.t.problems, Problem{in.Ref, field, reason})
}

// add adds one Ingress; those that are older are there already.
func (b *builder) add(in *Ingress) {
	if in.Options.Refused != "" {
		b.problem(in, "metadata.annotations", in.Options.Refused+"; the Ingress answers 503")
	}
	for _, name := range in.Options.Unsupported {
		b.problem(in, "metadata.annotations["+name+"]", "has no effect here")
	}
	if in.Options.Canary {
		b.problem(in, "metadata.annotations["+prefix+"canary]", "there are no weights: the rules of a canary are not served")
		return
	}
	tls := b.certificates(in)
	var fallback *Route
	if in.Default != nil {
		fallback = b.route(in, "spec.defaultBackend", *in.Default)
		fallback.tls = tls
		if b.t.fallback == nil {
			b.t.fallback = fallback
		} else {
			b.problem(in, fallback.Field, "serves only what no rule for its own hosts matches: the default backend for everything else is that of "+
				b.t.fallback.Ingress.String()+", which is older")
		}
	}
	for i := range in.Rules {
		rule := &in.Rules[i]
		h := b.host(rule.Host)
		if h.fallback == nil {
			h.fallback = fallback
		}
		r := b.route(in, rule.Field, rule.Target)
		r.Host, r.Path, r.Type, r.tls = rule.Host, rule.Path, rule.Type, tls
		b.insert(in, h, r)
	}
}

// host are the rules for a host, made where there are none yet.
func (b *builder) host(name string) *host {
	in, key := b.t.exact, name
	if rest, ok := strings.CutPrefix(name, "*"); ok {
		in, key = b.t.wild, rest
	}
	h := in[key]
	if name == "" {
		h = b.t.every
	}
	if h == nil {
		h = &host{exact: map[string]*Route{}, prefixes: map[string]*Route{}}
		if name == "" {
			b.t.every = h
		} else {
			in[key] = h
		}
	}
	return h
}

func (b *builder) route(in *Ingress, field string, target Target) *Route {
	key := backendKey{
		service: Ref{in.Namespace, target.Service}, target: target,
		protocol: in.Options.Protocol, hasProtocol: in.Options.HasProtocol, timeout: in.Options.ReadTimeout,
	}
	i, ok := b.index[key]
	if !ok {
		i = len(b.t.backends)
		b.index[key] = i
		b.t.backends = append(b.t.backends, b.w.backend(key))
	}
	return &Route{Ingress: in.Ref, Field: field, Options: &in.Options, backend: i, problem: in.Options.Refused}
}

// regexMarks are the characters that make a path a regular expression, where its Ingress asks for them at all.
const regexMarks = `^$*+?()[]{}|\`

// insert puts a route under its path. The first one there wins; it is the older one.
func (b *builder) insert(in *Ingress, h *host, r *Route) {
	if r.Type != Exact && in.Options.Regex && strings.ContainsAny(r.Path, regexMarks) {
		regex, size, err := compile(r.Path, maxIngressRegex-b.regexes[in.Ref])
		if err != nil {
			// It matches nothing, as nobody knows what it was to match.
			b.problem(in, r.Field+".path", err.Error())
			return
		}
		b.regexes[in.Ref] += size
		r.regex = regex
		if !slices.ContainsFunc(h.regexes, func(o *Route) bool { return b.taken(in, r, o) }) {
			h.regexes = append(h.regexes, r)
		}
		return
	}
	of, key := h.prefixes, strings.TrimSuffix(r.Path, "/")
	if r.Type == Exact {
		of, key = h.exact, r.Path
	} else {
		h.longest = max(h.longest, len(key))
	}
	switch o, ok := of[key]; {
	case ok && len(o.Path) < len(r.Path) && o.Path != "": // /foo/ is longer than /foo, and matches the same
		b.problem(&Ingress{Ref: o.Ingress}, o.Field+".path", "never matches: the longer path of "+r.Ingress.String()+" "+r.Field+" does first")
		of[key] = r
	case ok:
		b.taken(in, r, o)
	default:
		of[key] = r
	}
}

// taken says whether o has the place of r, and notes it.
func (b *builder) taken(in *Ingress, r, o *Route) bool {
	if o.regex != nil && o.Path != r.Path {
		return false
	}
	reason := "never matches: " + o.Ingress.String() + " " + o.Field + " has the same host and path"
	if o.Ingress != r.Ingress {
		reason += ", and is older"
	}
	b.problem(in, r.Field+".path", reason)
	return true
}

// certificates adds the entries of spec.tls. It says whether one of them is for every host of the Ingress.
func (b *builder) certificates(in *Ingress) bool {
	every := false
	for _, entry := range in.TLS {
		c := &Certificate{Ingress: in.Ref, Field: entry.Field}
		if entry.Secret != "" {
			ref := Ref{in.Namespace, entry.Secret}
			switch s, ok := b.w.secrets[ref]; {
			case !ok:
				c.Problem = "Secret " + ref.String() + " does not exist"
			case s.Problem != "":
				c.Problem = "Secret " + ref.String() + ": " + s.Problem
			default:
				c.Secret = ref
			}
			if c.Problem != "" {
				b.problem(in, entry.Field+".secretName", c.Problem)
			}
		}
		if len(entry.Hosts) == 0 {
			if every = true; b.t.certElse == nil {
				b.t.certElse = c
			}
		}
		for _, name := range entry.Hosts {
			of, key := b.t.certs, name
			if rest, ok := strings.CutPrefix(name, "*"); ok {
				of, key = b.t.wildCerts, rest
			}
			if o, ok := of[key]; !ok {
				of[key] = c
			} else if o.Secret != c.Secret {
				b.problem(in, entry.Field+".hosts", "the certificate for "+name+" is that of "+o.Ingress.String()+", which is older")
			}
		}
	}
	return every
}

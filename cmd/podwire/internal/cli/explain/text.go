package explain

import (
	"fmt"
	"io"
	"strings"

	"podwire.dev/internal/errs"
)

// sayer writes one fact.
type sayer func(what, format string, args ...any)

// WriteText prints the answer for people, one fact per line.
func (a *Answer) WriteText(w io.Writer) error {
	var b strings.Builder
	say := sayer(func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-8s %s\n", what, fmt.Sprintf(format, args...))
	})
	say("from", "%s", a.From)
	if a.Assumed != "" {
		say("assumed", "%s", a.Assumed)
	}
	if a.Name != nil {
		a.Name.write(say)
	}
	if a.To.Kind != "" {
		say("to", "%s, port %d/%s", a.To, a.Port, a.Protocol)
	}
	if a.Service != nil {
		a.Service.write(say)
	}
	for _, p := range a.Paths {
		p.write(say)
	}
	if a.Request != nil {
		a.Request.write(say)
	}
	if a.Note != "" {
		say("note", "%s", a.Note)
	}
	say("verdict", "%s", a.verdict())
	_, err := io.WriteString(w, b.String())
	return errs.WrapAs(errs.Internal, err, "explain")
}

func (r *Resolution) write(say sayer) {
	if r.Rcode != "" {
		name := r.Asked
		if r.Name != "" && r.Name != r.Asked {
			name += " is " + r.Name
		}
		say("name", "%s: %s: %s", name, either(strings.Join(r.Records, ", "), r.Rcode), r.Reason)
	}
	if r.Taken != "" {
		say("name", "%s is taken as %s", r.Asked, r.Taken)
	}
}

func (s *Translation) write(say sayer) {
	name := s.Name
	if s.Port != "" {
		name += ":" + s.Port
	}
	what := s.Match + " of " + name
	if s.Address != "" {
		what = s.Match + " " + s.Address + " of " + name
	}
	if s.Reason != "" {
		what += ": " + s.Reason
	}
	say("service", "%s", what)
	for _, e := range s.Backends {
		say("backend", "%s: %s on %s", e.Address, either(e.Pod, "an address outside of the cluster"), either(e.Node, "no node"))
	}
	if t := s.Tables; t != nil && t.Unknown != "" {
		t.write(say)
	} else if t != nil {
		say("tables", "%s: from %s: %s", t.Node, t.Source, either(strings.Join(t.Backends, ", "), t.Fate+" ("+t.DecidedBy+")"))
	}
	if s.Differs != "" {
		say("DIFFERS", "%s: `podwire status` shows who is behind", s.Differs)
	}
}

func (p Path) write(say sayer) {
	if p.Masquerade != "" {
		say("source", "%s sees %s: %s", p.To, p.Seen, p.Masquerade)
	} else if p.Seen != "" {
		say("source", "%s sees %s, the client's own address", p.To, p.Seen)
	}
	say("egress", "%s -> %s: %s", p.From, p.To, p.Policy.Egress)
	say("ingress", "%s -> %s: %s", p.From, p.To, p.Policy.Ingress)
	for _, t := range p.Tables {
		t.write(say)
	}
	if p.Differs != "" {
		say("DIFFERS", "%s: `podwire status` shows who is behind", p.Differs)
	}
}

func (r *Request) write(say sayer) {
	if r.Unknown != "" {
		say("request", "%s: the ingress cannot be asked: %s", r.URL, r.Unknown)
		return
	}
	say("request", "%s: %s", r.URL, r.Reason)
	if r.Rule != "" {
		say("rule", "Ingress %s, %s", r.Ingress, r.Rule)
	}
	if r.Certificate != "" {
		say("tls", "the certificate of Secret %s", r.Certificate)
	}
	if r.Service != "" {
		asked := ""
		if r.Path != "" {
			asked = ", asked for " + r.Path
		}
		say("service", "%s%s", r.Service, asked)
	}
	for _, p := range r.Paths {
		p.write(say)
	}
}

func (a *Answer) verdict() string {
	switch {
	case a.Verdict == Partly:
		return "allowed to " + a.Reason
	case a.Reason != "":
		return a.Verdict + ": " + a.Reason
	}
	return a.Verdict
}

func (t Tables) write(say sayer) {
	if t.Unknown != "" {
		say("route", "%s: cannot be asked: %s", t.Node, t.Unknown)
		return
	}
	for _, s := range t.Steps {
		say("route", "%s: %s", t.Node, s)
	}
	decided := ""
	if t.DecidedBy != "" {
		decided = " (" + t.DecidedBy + ")"
	}
	say("fate", "%s: from %s %s%s", t.Node, t.Source, t.Fate, decided)
}

// String names the party for people.
func (p Party) String() string {
	text := p.Kind + " " + p.Name
	if len(p.Addresses) > 0 && p.Addresses[0] != p.Name {
		text += " (" + strings.Join(p.Addresses, ", ") + ")"
	}
	if p.Node != "" {
		text += " on " + p.Node
	}
	return text
}

func either(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

package explain

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"podwire.dev/internal/errs"
)

// The verdicts of an Answer.
const (
	Allowed = "allowed"
	Denied  = "denied"
	// Refused: nothing is there that would answer, and the client hears so at once.
	Refused = "refused"
	// Partly: some of the endpoints that may be chosen are out of reach.
	Partly = "partly allowed"
)

// Answer is everything that was found out about one connection.
type Answer struct {
	From Party `json:"from"`
	To   Party `json:"to"`
	// Port is the destination's, before translation.
	Port     uint32 `json:"port"`
	Protocol string `json:"protocol"`
	// Service is nil where the destination is no Service's.
	Service *Translation `json:"service,omitempty"`
	// Paths has one entry per endpoint that may be chosen; none where the connection is refused.
	Paths []Path `json:"paths"`
	// Verdict is one of the constants.
	Verdict string `json:"verdict"`
	// Reason says why it is Refused.
	Reason string `json:"reason,omitempty"`
	// Note says what could not be asked, and why.
	Note string `json:"note,omitempty"`
}

// Party is an end, looked up.
type Party struct {
	// Kind is pod, node, service or address.
	Kind string `json:"kind"`
	// Name is <namespace>/<name> of a pod or service, the node's name, or the text of the question.
	Name      string   `json:"name"`
	Addresses []string `json:"addresses,omitempty"`
	// Node is where a pod runs.
	Node string `json:"node,omitempty"`
}

// Translation is what svcproxy says about a destination that is a Service's.
type Translation struct {
	Name string `json:"name"`
	// Match is cluster ip, node port, load balancer, external ip or headless.
	Match    string    `json:"match"`
	Port     string    `json:"portName,omitempty"`
	Backends []Backend `json:"backends"`
	// Tables is what the tables of the first node make of the destination; nil where none was asked.
	Tables *Tables `json:"tables,omitempty"`
	// Differs says how the tables' endpoints are not those of svcproxy.
	Differs string `json:"differs,omitempty"`
}

// Backend is an endpoint.
type Backend struct {
	// Address has the port.
	Address string `json:"address"`
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"`
}

// Path is the way to one endpoint.
type Path struct {
	// To is its address and port.
	To string `json:"to"`
	// Policy is what the policies say, straight from the objects.
	Policy Policy `json:"policy"`
	// Tables are what the nodes' tables do, in the order of the packet's way.
	Tables []Tables `json:"tables"`
	// Differs says how the two are not of one opinion.
	Differs string `json:"differs,omitempty"`
	// Passes is the tables' word where they were asked, else the policies'.
	Passes bool `json:"passes"`
}

// Policy is the word of the policy service.
type Policy struct {
	Allowed  bool   `json:"allowed"`
	Egress   string `json:"egress"`
	Ingress  string `json:"ingress"`
	Revision int64  `json:"revision"`
}

// Tables is what the tables of one node do to a packet.
type Tables struct {
	Node string `json:"node"`
	// Source is the packet's source as it comes to the node.
	Source string   `json:"source"`
	Steps  []string `json:"steps,omitempty"`
	// Fate is delivered, forwarded, dropped or rejected; empty where the agent could not be asked.
	Fate      string   `json:"fate,omitempty"`
	DecidedBy string   `json:"decidedBy,omitempty"`
	Backends  []string `json:"backends,omitempty"`
	// Unknown says why the agent could not be asked.
	Unknown string `json:"unknown,omitempty"`
}

// Blocks says whether the packet ends here.
func (t Tables) Blocks() bool { return t.Fate == "dropped" || t.Fate == "rejected" }

// ByPolicy says whether a policy decided.
func (t Tables) ByPolicy() bool {
	return strings.HasPrefix(t.DecidedBy, "egress policy") || strings.HasPrefix(t.DecidedBy, "ingress policy")
}

// Conclude draws Passes and Differs of each path from what both sides say, and the verdict from the paths.
func (a *Answer) Conclude() {
	passing := 0
	for i := range a.Paths {
		a.Paths[i].conclude()
		if a.Paths[i].Passes {
			passing++
		}
	}
	switch {
	case a.Verdict != "": // refused before any path
	case passing == len(a.Paths) && passing > 0:
		a.Verdict = Allowed
	case passing > 0:
		a.Verdict = Partly
	case a.rejected() != "":
		a.Verdict, a.Reason = Refused, a.rejected()
	default:
		a.Verdict = Denied
	}
}

// rejected says what refuses every path at once although policies allow it; empty where that is not so.
func (a *Answer) rejected() string {
	reason := ""
	for _, p := range a.Paths {
		last := Tables{}
		if n := len(p.Tables); n > 0 {
			last = p.Tables[n-1]
		}
		if last.Fate != "rejected" || !p.Policy.Allowed || last.ByPolicy() {
			return ""
		}
		reason = fmt.Sprintf("the tables of %s: %s", last.Node, last.DecidedBy)
	}
	return reason
}

func (p *Path) conclude() {
	p.Passes = p.Policy.Allowed
	asked := len(p.Tables) > 0
	for _, t := range p.Tables {
		if t.Blocks() {
			p.Passes = false
			if p.Policy.Allowed && t.ByPolicy() {
				p.Differs = fmt.Sprintf("policy says allowed at revision %d, the tables of %s say %s (%s)", p.Policy.Revision, t.Node, t.Fate, t.DecidedBy)
			}
			return
		}
		asked = asked && t.Unknown == ""
	}
	if asked && !p.Policy.Allowed {
		p.Passes = true
		p.Differs = fmt.Sprintf("policy says denied at revision %d, the tables of every node on the way let it pass", p.Policy.Revision)
	}
}

// WriteJSON prints the answer as JSON.
func (a *Answer) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "    ")
	enc.SetEscapeHTML(false)
	return errs.WrapAs(errs.Internal, enc.Encode(a), "explain")
}

// WriteText prints the answer for people, one fact per line.
func (a *Answer) WriteText(w io.Writer) error {
	var b strings.Builder
	say := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-8s %s\n", what, fmt.Sprintf(format, args...))
	}
	say("from", "%s", a.From)
	say("to", "%s, port %d/%s", a.To, a.Port, a.Protocol)
	if s := a.Service; s != nil {
		name := s.Name
		if s.Port != "" {
			name += ":" + s.Port
		}
		say("service", "%s of %s", s.Match, name)
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
	for _, p := range a.Paths {
		say("egress", "%s -> %s: %s", a.From.Name, p.To, p.Policy.Egress)
		say("ingress", "%s -> %s: %s", a.From.Name, p.To, p.Policy.Ingress)
		for _, t := range p.Tables {
			t.write(say)
		}
		if p.Differs != "" {
			say("DIFFERS", "%s: `podwire status` shows who is behind", p.Differs)
		}
	}
	if a.Note != "" {
		say("note", "%s", a.Note)
	}
	say("verdict", "%s", a.verdict())
	_, err := io.WriteString(w, b.String())
	return errs.WrapAs(errs.Internal, err, "explain")
}

func (a *Answer) verdict() string {
	switch a.Verdict {
	case Refused:
		return Refused + ": " + a.Reason
	case Partly:
		n := 0
		for _, p := range a.Paths {
			if p.Passes {
				n++
			}
		}
		return fmt.Sprintf("allowed to %d of %d endpoints", n, len(a.Paths))
	}
	return a.Verdict
}

func (t Tables) write(say func(what, format string, args ...any)) {
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

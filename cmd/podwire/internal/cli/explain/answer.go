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
	// Dropped: the Service does not let the client in, and does not answer.
	Dropped = "dropped"
	// Unrouted: the packet comes to no node.
	Unrouted = "not routed"
	// Unresolved: the name leads to no address.
	Unresolved = "not resolved"
	// Answered: the ingress answers the request itself, and no backend sees it.
	Answered = "answered by the ingress"
)

// Answer is everything that was found out about one connection.
type Answer struct {
	From Party `json:"from"`
	To   Party `json:"to"`
	// Port is the destination's, before translation.
	Port     uint32 `json:"port"`
	Protocol string `json:"protocol"`
	// Assumed says which address the client is taken to have, and why; empty where it is known.
	Assumed string `json:"assumed,omitempty"`
	// Name is nil where the destination was given by no name that clients resolve.
	Name *Resolution `json:"name,omitempty"`
	// Service is nil where the destination is no Service's.
	Service *Translation `json:"service,omitempty"`
	// Paths has one entry per endpoint that may be chosen; none where the connection is refused.
	Paths []Path `json:"paths"`
	// Request is what the ingress makes of it; nil where none is asked.
	Request *Request `json:"request,omitempty"`
	// Verdict is one of the constants.
	Verdict string `json:"verdict"`
	// Reason says why, where it is not the paths that say so.
	Reason string `json:"reason,omitempty"`
	// Note says what could not be asked, and why.
	Note string `json:"note,omitempty"`
}

// Resolution is what a name leads to for the client.
type Resolution struct {
	// Asked is the name as given; Name the complete one that the search list led to.
	Asked string `json:"asked"`
	Name  string `json:"name,omitempty"`
	// Records are the answers, each as TYPE DATA.
	Records []string `json:"records,omitempty"`
	// Rcode is NOERROR, NXDOMAIN and so on; empty where nobody was asked.
	Rcode  string `json:"rcode,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Denied says why the client's own queries do not pass, whatever the answer is; empty where they do.
	Denied string `json:"denied,omitempty"`
	// Taken says what the name was taken for where it was not resolved, and why.
	Taken string `json:"taken,omitempty"`
}

// Request is a request over HTTP in the ingress.
type Request struct {
	URL string `json:"url"`
	// Ingress is <namespace>/<name>, and Rule the field in it that decides; both empty where none does.
	Ingress string `json:"ingress,omitempty"`
	Rule    string `json:"rule,omitempty"`
	// Service is <namespace>/<name> with the port as the Ingress names it.
	Service string `json:"service,omitempty"`
	// Path is what the backend is asked for.
	Path string `json:"path,omitempty"`
	// Certificate is the Secret of what the client is shown; empty for the server's own, and without TLS.
	Certificate string `json:"certificate,omitempty"`
	// Status is what the ingress answers itself; 0: the backend's answer is passed on.
	Status int32  `json:"status,omitempty"`
	Reason string `json:"reason"`
	// Paths are those from the ingress to the endpoints.
	Paths []Path `json:"paths,omitempty"`
	// Unknown says why the ingress could not be asked.
	Unknown string `json:"unknown,omitempty"`
}

// Party is an end, looked up.
type Party struct {
	// Kind is pod, member (a fabric member that is no node), node, service, host or address.
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
	Match string `json:"match"`
	// Address is what a client outside has to dial, with the port, where the question has the Service's name.
	Address  string    `json:"address,omitempty"`
	Port     string    `json:"portName,omitempty"`
	Backends []Backend `json:"backends"`
	// Reason says why these backends.
	Reason string `json:"reason,omitempty"`
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
	// From is who sends, by name.
	From string `json:"from"`
	// To is its address and port.
	To string `json:"to"`
	// Seen is the source as the endpoint and its policy see it, and Masquerade says why it is not the client's own; both
	// empty where nothing changes it and nobody would ask.
	Seen       string `json:"seen,omitempty"`
	Masquerade string `json:"masquerade,omitempty"`
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

// Conclude draws Passes and Differs of each path from what both sides say, and the verdict from the paths. Where the
// request goes on from an ingress, its paths decide.
func (a *Answer) Conclude() {
	if a.Verdict != "" { // decided before any path
		return
	}
	a.Verdict, a.Reason = conclude(a.Paths)
}

// Conclude is the same of the request's own paths: its word holds where the client reaches the ingress.
func (r *Request) Conclude() (verdict, reason string) { return conclude(r.Paths) }

func conclude(paths []Path) (verdict, reason string) {
	passing := 0
	for i := range paths {
		paths[i].conclude()
		if paths[i].Passes {
			passing++
		}
	}
	switch {
	case passing == len(paths) && passing > 0:
		return Allowed, ""
	case passing > 0:
		return Partly, fmt.Sprintf("%d of %d endpoints", passing, len(paths))
	}
	if reason := rejected(paths); reason != "" {
		return Refused, reason
	}
	return Denied, ""
}

// rejected says what refuses every path at once although policies allow it; empty where that is not so.
func rejected(paths []Path) string {
	reason := ""
	for _, p := range paths {
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

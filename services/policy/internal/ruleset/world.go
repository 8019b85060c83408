package ruleset

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"

	"podwire.dev/internal/nodestate"
)

// Pod is what policy needs to know of a Pod.
type Pod struct {
	Ref
	UID    string
	Node   string // empty: not scheduled
	Labels map[string]string
	// Addresses are the pod's own; none while it has no address, or where it uses its host's network.
	Addresses []netip.Addr
	Ports     []NamedPort
	// HostNetwork pods are neither subjects nor peers: their packets are their node's.
	HostNetwork bool
	// Finished pods (Succeeded, Failed) are no peers: their address may belong to somebody else.
	Finished bool
}

// NamedPort is a container port with a name.
type NamedPort struct {
	Name     string
	Protocol nodestate.Protocol
	Number   uint16
}

type portName struct {
	name     string
	protocol nodestate.Protocol
}

// term is a kind of peer that rules refer to, with the pods that match it now.
type term struct {
	key   string // names the term among all
	peer  PeerTerm
	named portName             // the term is "has this port" where named.name is set
	pods  map[*podState]string // pod -> token
	users map[*policyState]bool
}

// podState is a Pod with what refers to it.
type podState struct {
	Pod
	terms    map[*term]string
	policies map[*policyState]bool // that select it
}

type policyState struct {
	Policy
	pods  map[*podState]bool
	terms []*term
}

// World is what policy knows of the cluster. It is not safe for concurrent use.
type World struct {
	namespaces map[string]map[string]string
	pods       map[Ref]*podState
	byNS       map[string]map[*podState]bool
	byNode     map[string]map[*podState]bool
	holders    map[netip.Addr]map[*podState]bool // the pods that may be meant by an address
	nodes      map[string][]netip.Addr
	policies   map[Ref]*policyState
	policyNS   map[string]map[*policyState]bool
	terms      map[string]*term
	dirty      map[string]bool
}

// NewWorld returns an empty World.
func NewWorld() *World {
	return &World{
		namespaces: map[string]map[string]string{}, pods: map[Ref]*podState{}, policies: map[Ref]*policyState{},
		byNS: map[string]map[*podState]bool{}, byNode: map[string]map[*podState]bool{},
		holders: map[netip.Addr]map[*podState]bool{}, nodes: map[string][]netip.Addr{},
		policyNS: map[string]map[*policyState]bool{}, terms: map[string]*term{}, dirty: map[string]bool{},
	}
}

// Dirty returns the nodes whose tables may have changed since the last call, sorted, and forgets them.
func (w *World) Dirty() []string {
	nodes := slices.Sorted(maps.Keys(w.dirty))
	clear(w.dirty)
	return nodes
}

// SetNode adds a Node or changes its addresses. They decide over no table, only over what [World.Explain] says of nodes.
func (w *World) SetNode(name string, addrs []netip.Addr) { w.nodes[name] = slices.Clone(addrs) }

// DeleteNode forgets a Node; its pods stay until they are deleted.
func (w *World) DeleteNode(name string) { delete(w.nodes, name) }

// SetNamespace adds a Namespace or changes its labels.
func (w *World) SetNamespace(name string, labels map[string]string) {
	old, known := w.namespaces[name]
	w.namespaces[name] = maps.Clone(labels)
	if w.namespaces[name] == nil {
		w.namespaces[name] = map[string]string{}
	}
	if known && maps.Equal(old, labels) {
		return
	}
	w.rejudge(name)
}

// DeleteNamespace removes a Namespace; its pods match no namespace selector from then on.
func (w *World) DeleteNamespace(name string) {
	delete(w.namespaces, name)
	w.rejudge(name)
}

func (w *World) rejudge(namespace string) {
	for p := range w.byNS[namespace] {
		w.matchTerms(p)
	}
}

// SetPod adds a Pod or replaces what is known of it.
func (w *World) SetPod(pod Pod) {
	old := w.pods[pod.Ref]
	if old != nil && samePod(old.Pod, pod) {
		return
	}
	if old != nil {
		w.DeletePod(pod.Ref)
	}
	p := &podState{Pod: pod, terms: map[*term]string{}, policies: map[*policyState]bool{}}
	w.pods[pod.Ref] = p
	put(w.byNS, pod.Namespace, p)
	if pod.Node != "" {
		put(w.byNode, pod.Node, p)
		w.dirty[pod.Node] = true
	}
	w.hold(p)
	if !pod.HostNetwork {
		for pol := range w.policyNS[pod.Namespace] {
			if pol.Selects.Matches(pod.Labels) {
				p.policies[pol], pol.pods[p] = true, true
			}
		}
	}
	w.matchTerms(p)
}

// samePod says whether nothing that policy looks at has changed.
func samePod(a, b Pod) bool {
	return a.UID == b.UID && a.Node == b.Node && a.HostNetwork == b.HostNetwork && a.Finished == b.Finished &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Ports, b.Ports)
}

// DeletePod forgets a Pod.
func (w *World) DeletePod(ref Ref) {
	p := w.pods[ref]
	if p == nil {
		return
	}
	delete(w.pods, ref)
	drop(w.byNS, ref.Namespace, p)
	if p.Node != "" {
		drop(w.byNode, p.Node, p)
		w.dirty[p.Node] = true
	}
	for pol := range p.policies {
		delete(pol.pods, p)
	}
	for t := range p.terms {
		delete(t.pods, p)
		w.dirtyUsers(t)
	}
	w.unhold(p)
}

// peers says whether the pod's addresses are its own: those of its host's network and those of a finished pod may be
// somebody else's.
func (p *podState) peers() bool { return !p.HostNetwork && !p.Finished }

func (w *World) hold(p *podState) {
	if !p.peers() {
		return
	}
	for _, a := range p.Addresses {
		w.dirtyHolders(a)
		put(w.holders, a, p)
	}
}

func (w *World) unhold(p *podState) {
	if !p.peers() {
		return
	}
	for _, a := range p.Addresses {
		drop(w.holders, a, p)
		w.dirtyHolders(a)
	}
}

// dirtyHolders concerns those to whom the present holders of an address are peers: what it counts as changes.
func (w *World) dirtyHolders(a netip.Addr) {
	for other := range w.holders[a] {
		for t := range other.terms {
			w.dirtyUsers(t)
		}
	}
}

// matchTerms brings a pod's membership of every term up to date.
func (w *World) matchTerms(p *podState) {
	for _, t := range w.terms {
		w.match(t, p)
	}
}

func (w *World) match(t *term, p *podState) {
	token, now := w.token(t, p)
	if !now {
		token = ""
	}
	before, was := p.terms[t]
	if now == was && token == before {
		return
	}
	if now {
		p.terms[t], t.pods[p] = token, token
	} else {
		delete(p.terms, t)
		delete(t.pods, p)
	}
	w.dirtyUsers(t)
}

// token says whether a pod is a peer of a term, and what the term contributes to its class.
func (w *World) token(t *term, p *podState) (string, bool) {
	if !p.peers() || len(p.Addresses) == 0 || t.peer.Block.IsValid() {
		return "", false
	}
	if t.named.name != "" {
		numbers := p.resolve(t.named)
		return t.key + "=" + numbers, numbers != ""
	}
	if t.peer.Namespace != "" {
		return t.key, p.Namespace == t.peer.Namespace && t.peer.Pods.Matches(p.Labels)
	}
	labels, ok := w.namespaces[p.Namespace]
	return t.key, ok && t.peer.Namespaces.Matches(labels) && t.peer.Pods.Matches(p.Labels)
}

// resolve returns the numbers of a named port, ascending, as text; empty where the pod has no such port.
func (p *podState) resolve(n portName) string {
	var numbers []int
	for _, port := range p.Ports {
		if port.Name == n.name && port.Protocol == n.protocol {
			numbers = append(numbers, int(port.Number))
		}
	}
	sort.Ints(numbers)
	text := make([]string, 0, len(numbers))
	for _, number := range slices.Compact(numbers) {
		text = append(text, strconv.Itoa(number))
	}
	return strings.Join(text, ",")
}

func (n portName) key() string { return "port " + n.name + "/" + n.protocol.String() }

// key is a canonical name of a peer: equal peers of different rules are one term.
func (t PeerTerm) key() string {
	switch {
	case t.Block.IsValid():
		except := make([]string, len(t.Except))
		for i, e := range t.Except {
			except[i] = e.String()
		}
		sort.Strings(except)
		return "block " + t.Block.String() + " but " + strings.Join(except, ",")
	case t.Namespace != "":
		return "pods of " + t.Namespace + " " + t.Pods.String()
	}
	return "pods of " + t.Namespaces.String() + " " + t.Pods.String()
}

func (w *World) dirtyUsers(t *term) {
	for pol := range t.users {
		w.dirtyPods(pol)
	}
}

func (w *World) dirtyPods(pol *policyState) {
	for p := range pol.pods {
		if p.Node != "" {
			w.dirty[p.Node] = true
		}
	}
}

// SetPolicy adds a NetworkPolicy or replaces it.
func (w *World) SetPolicy(policy Policy) {
	if old := w.policies[policy.Ref]; old != nil && reflect.DeepEqual(old.Policy, policy) {
		return // its labels or annotations changed
	}
	w.DeletePolicy(policy.Ref)
	pol := &policyState{Policy: policy, pods: map[*podState]bool{}}
	w.policies[policy.Ref] = pol
	put(w.policyNS, policy.Namespace, pol)
	for p := range w.byNS[policy.Namespace] {
		if !p.HostNetwork && policy.Selects.Matches(p.Labels) {
			p.policies[pol], pol.pods[p] = true, true
		}
	}
	for _, r := range policy.Rules {
		for _, peer := range r.Peers {
			w.use(pol, term{key: peer.key(), peer: peer})
		}
		if r.Direction != nodestate.Egress {
			continue
		}
		for _, port := range r.Ports {
			if port.Name != "" {
				n := portName{port.Name, port.Protocol}
				w.use(pol, term{key: n.key(), named: n})
			}
		}
	}
	w.dirtyPods(pol)
}

// use makes a policy a user of a term, which is made and matched against every pod when it has no user yet.
func (w *World) use(pol *policyState, made term) {
	t := w.terms[made.key]
	if t == nil {
		made.pods, made.users = map[*podState]string{}, map[*policyState]bool{}
		t = &made
		w.terms[made.key] = t
		for _, p := range w.pods {
			w.match(t, p)
		}
	}
	if !t.users[pol] {
		t.users[pol] = true
		pol.terms = append(pol.terms, t)
	}
}

// DeletePolicy forgets a NetworkPolicy.
func (w *World) DeletePolicy(ref Ref) {
	pol := w.policies[ref]
	if pol == nil {
		return
	}
	w.dirtyPods(pol)
	delete(w.policies, ref)
	drop(w.policyNS, ref.Namespace, pol)
	for p := range pol.pods {
		delete(p.policies, pol)
	}
	for _, t := range pol.terms {
		delete(t.users, pol)
		if len(t.users) > 0 {
			continue
		}
		for p := range t.pods {
			delete(p.terms, t)
		}
		delete(w.terms, t.key)
	}
}

func put[K comparable, V comparable](m map[K]map[V]bool, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]bool{}
	}
	m[k][v] = true
}

func drop[K comparable, V comparable](m map[K]map[V]bool, k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

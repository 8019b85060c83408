package ruleset

import (
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podwire.dev/internal/nodestate"
)

// Compile returns the policy tables of one node. It is a function of the World alone.
func (w *World) Compile(node string) *nodestate.Slice {
	c := compilation{
		world:   w,
		out:     nodestate.NewSlice(),
		holders: map[string][]nodestate.Class{},
		classes: map[nodestate.Class]bool{},
		allows:  map[string]nodestate.Allow{},
	}
	subjects := w.subjects(node)
	c.peers(subjects)
	done := map[sideKey]bool{}
	for _, p := range subjects {
		row := nodestate.Subject{PodUID: p.UID}
		row.Ingress = c.side(p, nodestate.Ingress, done)
		row.Egress = c.side(p, nodestate.Egress, done)
		c.out.Upsert(row)
	}
	for _, a := range c.allows {
		c.out.Upsert(a)
	}
	return c.out
}

// subjects returns the pods of a node that can be isolated, sorted by name.
func (w *World) subjects(node string) []*podState {
	var pods []*podState
	for p := range w.byNode[node] {
		if !p.HostNetwork {
			pods = append(pods, p)
		}
	}
	slices.SortFunc(pods, func(a, b *podState) int { return strings.Compare(a.String(), b.String()) })
	return pods
}

type sideKey struct {
	direction nodestate.Direction
	class     nodestate.Class
}

// compilation is the state of one Compile.
type compilation struct {
	world *World
	out   *nodestate.Slice
	// holders are the peer classes that contribute a token: term, block or named port.
	holders map[string][]nodestate.Class
	classes map[nodestate.Class]bool
	allows  map[string]nodestate.Allow
}

// classOf names a set by what defines it.
func classOf(kind string, tokens []string) nodestate.Class {
	h := sha256.New()
	for _, t := range append([]string{kind}, tokens...) {
		h.Write([]byte(strconv.Itoa(len(t)) + ":" + t))
	}
	return nodestate.Class(h.Sum(nil)[:16])
}

// peers writes the Peer and PeerRange rows for everything that a rule of the subjects refers to.
func (c *compilation) peers(subjects []*podState) {
	terms := map[*term]bool{}
	var blocks []*term
	for _, p := range subjects {
		for pol := range p.policies {
			for _, t := range pol.terms {
				if !terms[t] && t.peer.Block.IsValid() {
					blocks = append(blocks, t)
				}
				terms[t] = true
			}
		}
	}
	tokens := map[*podState][]string{}
	for t := range terms {
		for p, token := range t.pods {
			tokens[p] = append(tokens[p], token)
		}
	}
	for a, shared := range c.addressTokens(tokens) {
		all := append(shared, blockTokens(blocks, a)...)
		c.out.Upsert(nodestate.Peer{Address: a, Class: c.class(all)})
	}
	for _, at := range atoms(blocks) {
		c.out.Upsert(nodestate.PeerRange{AddrRange: at.AddrRange, Class: c.class(at.tokens)})
	}
}

// addressTokens returns what each address of the pods counts as. Where several pods claim one address, which a store
// should never show, it counts only as what all of them are.
func (c *compilation) addressTokens(pods map[*podState][]string) map[netip.Addr][]string {
	out := map[netip.Addr][]string{}
	for p, own := range pods {
		for _, a := range p.Addresses {
			if _, done := out[a]; done {
				continue
			}
			shared := slices.Clone(own)
			for other := range c.world.holders[a] {
				shared = slices.DeleteFunc(shared, func(t string) bool { return !slices.Contains(pods[other], t) })
			}
			out[a] = shared
		}
	}
	return out
}

// class returns the peer class of a set of tokens and remembers who holds each token.
func (c *compilation) class(tokens []string) nodestate.Class {
	slices.Sort(tokens)
	class := classOf("peer", tokens)
	if !c.classes[class] {
		c.classes[class] = true
		for _, t := range tokens {
			c.holders[t] = append(c.holders[t], class)
		}
	}
	return class
}

// side returns one direction of a subject and, once per class, writes the rows that it allows.
func (c *compilation) side(p *podState, d nodestate.Direction, done map[sideKey]bool) nodestate.Side {
	policies := p.isolating(d)
	if len(policies) == 0 {
		return nodestate.Side{Mode: nodestate.SideOpen}
	}
	var names, tokens []string
	for _, pol := range policies {
		names = append(names, pol.String())
		tokens = append(tokens, "policy "+pol.String())
	}
	if d == nodestate.Ingress {
		tokens = append(tokens, p.ownPorts(policies)...)
	}
	side := nodestate.Side{Mode: nodestate.SideIsolated, Class: classOf("subject "+d.String(), tokens), Policies: names}
	if key := (sideKey{d, side.Class}); !done[key] {
		done[key] = true
		for _, pol := range policies {
			for _, r := range pol.Rules {
				if r.Direction == d {
					c.rule(p, pol.Ref, r, side.Class)
				}
			}
		}
	}
	return side
}

// isolating returns the policies that isolate a pod in one direction, sorted.
func (p *podState) isolating(d nodestate.Direction) []*policyState {
	var policies []*policyState
	for pol := range p.policies {
		if pol.Isolates[d] {
			policies = append(policies, pol)
		}
	}
	slices.SortFunc(policies, func(a, b *policyState) int { return strings.Compare(a.String(), b.String()) })
	return policies
}

// ownPorts returns how the named ports of ingress rules resolve on the subject itself.
func (p *podState) ownPorts(policies []*policyState) []string {
	resolved := map[string]bool{}
	for _, pol := range policies {
		for _, r := range pol.Rules {
			for _, port := range r.Ports {
				if r.Direction == nodestate.Ingress && port.Name != "" {
					n := portName{port.Name, port.Protocol}
					resolved[n.key()+"="+p.resolve(n)] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(resolved))
}

// rule writes what one rule allows to one subject class.
func (c *compilation) rule(p *podState, policy Ref, r Rule, subject nodestate.Class) {
	base := nodestate.Allow{Direction: r.Direction, Subject: subject, Origins: []string{r.origin(policy)}}
	if r.AnyPort {
		base.PortMode = nodestate.PortAny
		c.withPeers(r, base)
		return
	}
	for _, port := range r.Ports {
		a := base
		a.Protocol = port.Protocol
		switch {
		case port.Name != "" && r.Direction == nodestate.Egress:
			c.namedEgress(r, port, a)
		case port.Name != "":
			for _, number := range numbers(p.resolve(portName{port.Name, port.Protocol})) {
				a.PortMode, a.From, a.To = nodestate.PortRange, number, number
				c.withPeers(r, a)
			}
		case port.From == 0:
			a.PortMode = nodestate.PortProtocol
			c.withPeers(r, a)
		default:
			a.PortMode, a.From, a.To = nodestate.PortRange, port.From, port.To
			c.withPeers(r, a)
		}
	}
}

// numbers reads what podState.resolve wrote.
func numbers(text string) []uint16 {
	var out []uint16
	for _, part := range strings.Split(text, ",") {
		if n, err := strconv.ParseUint(part, 10, 16); err == nil {
			out = append(out, uint16(n))
		}
	}
	return out
}

// withPeers writes one row for each peer class of a rule, or one for any peer.
func (c *compilation) withPeers(r Rule, a nodestate.Allow) {
	if r.AnyPeer {
		a.PeerMode = nodestate.PeerAny
		c.allow(a)
		return
	}
	a.PeerMode = nodestate.PeerClass
	for class := range c.peerClasses(r) {
		a.Peer = class
		c.allow(a)
	}
}

func (c *compilation) peerClasses(r Rule) map[nodestate.Class]bool {
	classes := map[nodestate.Class]bool{}
	for _, t := range r.Peers {
		for _, class := range c.holders[t.key()] {
			classes[class] = true
		}
	}
	return classes
}

// namedEgress writes the rows of a named port, which each peer resolves on its own: a rule for any peer reaches every
// pod that has a port of that name, and nothing else.
func (c *compilation) namedEgress(r Rule, port Port, a nodestate.Allow) {
	prefix := portName{port.Name, port.Protocol}.key() + "="
	wanted := c.peerClasses(r)
	a.PeerMode, a.PortMode = nodestate.PeerClass, nodestate.PortRange
	for token, classes := range c.holders {
		if !strings.HasPrefix(token, prefix) {
			continue
		}
		for _, class := range classes {
			if !r.AnyPeer && !wanted[class] {
				continue
			}
			for _, number := range numbers(token[len(prefix):]) {
				a.Peer, a.From, a.To = class, number, number
				c.allow(a)
			}
		}
	}
}

// allow adds a row, or its origin to the row that is there.
func (c *compilation) allow(a nodestate.Allow) {
	key := a.Key()
	if old, ok := c.allows[key]; ok {
		a.Origins = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(old.Origins), a.Origins...))))
	}
	c.allows[key] = a
}

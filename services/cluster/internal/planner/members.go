package planner

import (
	"net/netip"

	"podwire.dev/internal/store"
)

// The Pods of fabric members that are no nodes: their Namespace, and the annotation that names their service. Cluster
// writes them, and nobody else.
const (
	MemberNamespace  = "kube-system"
	AnnotationMember = "podwire.dev/member"
)

// MembersPods are the Pods of the members' Namespace, by name, whether they are members' or not; nil while the Namespace is
// not there. Inside of feed.Do only.
func (p *Planner) MembersPods() map[string]store.Record {
	if _, exists := p.namespaces[MemberNamespace]; !exists {
		return nil
	}
	out := map[string]store.Record{}
	for key := range p.content[MemberNamespace] {
		if e := p.pods[key]; e != nil {
			out[key.Name] = e.rec
		}
	}
	return out
}

// Leases says whether a fabric member holds an address. Inside of feed.Do only.
func (p *Planner) Leases(member string, addr netip.Addr) bool {
	for _, b := range p.blocks {
		if b.member == member && member != "" && b.prefix.Contains(addr) {
			return true
		}
	}
	return false
}

package planner

import (
	"maps"
	"slices"

	"podwire.dev/internal/names"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// AnnotationRequest is the annotation of an AddressBlock with the request_id that leased it.
const AnnotationRequest = "ipam.podwire.dev/request"

// Orphan is a grant whose owner the store does not show.
type Orphan struct {
	Rec store.Record
	// Reason is for people.
	Reason string
	// After is the revision that the watermarks of all required services must have passed: up to there somebody may take
	// the address for the one who had it. 0: nobody does.
	After store.Revision
}

// Orphans returns the claims whose owner does not exist and the blocks of Nodes and members that do not exist, by object
// name. A block that is cut for members has no owner to lose.
func (p *Planner) Orphans() map[string]Orphan {
	out := map[string]Orphan{}
	for name, rec := range p.claims {
		if c := ClaimOf(rec.Object.(*objectv1.AddressClaim)); !p.owners[c.Owner.UID] {
			out[name] = Orphan{Rec: rec, Reason: "no " + c.Owner.Kind + " " + c.Owner.Namespace + "/" + c.Owner.Name + " with its uid exists"}
		}
	}
	for name, l := range p.blocks {
		switch {
		case l.holder == Holder{}:
		case l.holder.Member != "":
			if p.members[l.holder.Member] == nil {
				out[name] = Orphan{l.rec, "no Pod " + MemberNamespace + "/" + l.holder.Member + " exists", p.absentSince(l)}
			}
		case p.nodes[l.holder.Node] == nil:
			out[name] = Orphan{Rec: l.rec, Reason: "no Node " + l.holder.Node + " exists"}
		}
	}
	return out
}

// absentSince is the revision since which the member of a lease has no Pod; where a new World does not tell, that of the
// World itself, which is later.
func (p *Planner) absentSince(l lease) store.Revision {
	if since, ok := p.gone[l.holder.Member]; ok {
		return since
	}
	return max(l.rec.Revision, p.began)
}

// forgetGone drops members that hold nothing any more.
func (p *Planner) forgetGone() {
	holds := map[string]bool{}
	for _, l := range p.blocks {
		holds[l.holder.Member] = true
	}
	maps.DeleteFunc(p.gone, func(name string, _ store.Revision) bool { return !holds[name] })
}

// Block returns a lease by the name of its object.
func (p *Planner) Block(name string) (store.Record, bool) {
	l, ok := p.blocks[name]
	return l.rec, ok
}

// LeaseOf returns the lease of a family, 4 or 6, that a holder's request was answered with. A member has one address of each
// family, whatever it asks.
func (p *Planner) LeaseOf(h Holder, request string, fam int) (store.Record, bool) {
	for _, l := range p.blocks {
		if l.holder != h || l.prefix.Addr().Is4() != (fam == 4) {
			continue
		}
		if h.Member != "" || l.rec.Object.GetMetadata().GetAnnotations()[AnnotationRequest] == request {
			return l.rec, true
		}
	}
	return store.Record{}, false
}

// LeasesOfNode is how many blocks of a family, 4 or 6, a node has.
func (p *Planner) LeasesOfNode(node string, fam int) int {
	return p.leases(fam, func(h Holder) bool { return h == Holder{Node: node} })
}

// LeasesOfService is how many addresses of a family, 4 or 6, the members of a service have.
func (p *Planner) LeasesOfService(service string, fam int) int {
	return p.leases(fam, func(h Holder) bool { return h.Member != "" && names.Member(service, h.Member) == "" })
}

func (p *Planner) leases(fam int, of func(Holder) bool) (count int) {
	for _, l := range p.blocks {
		if l.prefix.Addr().Is4() == (fam == 4) && of(l.holder) {
			count++
		}
	}
	return count
}

// Tunnel says whether a block carries its holder's tunnel address, and so cannot be given back while the holder exists.
func (p *Planner) Tunnel(name string) bool {
	l, ok := p.blocks[name]
	if !ok {
		return false
	}
	var held []lease
	for _, other := range p.blocks {
		if other.holder == l.holder {
			held = append(held, other)
		}
	}
	addrs, _ := tunnels(held)
	return slices.Contains(addrs, l.prefix.Addr())
}

// Attends says whether a member has its Pod.
func (p *Planner) Attends(member string) bool { return p.members[member] != nil }

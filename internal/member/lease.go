package member

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"podwire.dev/internal/backoff"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
)

// refresh is how often a lease is asked for again: somebody may have given it back.
const refresh = 30 * time.Second

// wait pauses and says whether to go on. A value of hurry cuts it.
func wait(ctx context.Context, d time.Duration, hurry <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-hurry:
	case <-timer.C:
	}
	return true
}

// lease holds an address of each family of the pod ranges, until ctx ends.
func (m *Member) lease(ctx context.Context) error {
	var pause backoff.Backoff
	said := ""
	for wait(ctx, refresh, m.wanted) {
		for {
			err := m.leaseAll(ctx)
			if err == nil {
				pause.Reset()
				said = ""
				break
			}
			if text := err.Error(); ctx.Err() == nil && text != said {
				said = text
				m.log.Warn("ipam gives this member no address, trying again", "error", err)
			}
			m.hampered(err.Error())
			if !pause.Wait(ctx, m.wanted) {
				return nil
			}
		}
	}
	return nil
}

// leaseAll asks for the lease of every family. The same request gives the same address, also to a restarted process.
func (m *Member) leaseAll(ctx context.Context) error {
	m.mu.Lock()
	families := slices.Clone(m.families)
	m.mu.Unlock()
	var granted []netip.Addr
	for _, family := range families {
		a, err := m.leaseOne(ctx, family)
		if err != nil {
			return err
		}
		granted = append(granted, a)
	}
	if len(granted) == 0 {
		return nil // the ranges are not known yet
	}
	m.mu.Lock()
	m.granted = sorted(granted)
	m.mu.Unlock()
	nudge(m.leased)
	return nil
}

func (m *Member) leaseOne(ctx context.Context, family int) (netip.Addr, error) {
	req := &ipamv1.LeaseBlockRequest{
		Member: m.parts.Name, Family: ipamv1.Family_FAMILY_IPV4, RequestId: "member/" + m.parts.Name + "/IPv4",
	}
	if family == 6 {
		req.Family, req.RequestId = ipamv1.Family_FAMILY_IPV6, "member/"+m.parts.Name+"/IPv6"
	}
	resp, err := m.parts.Allocations.LeaseBlock(ctx, req)
	if err != nil {
		return netip.Addr{}, errs.Wrap(err, "member: lease an IPv%d address", family)
	}
	cidr := resp.GetObject().GetSpec().GetCidr()
	p, err := netip.ParsePrefix(cidr)
	if err != nil || !p.IsSingleIP() || familyOf(p.Addr()) != family {
		return netip.Addr{}, errs.New(errs.Internal, "member: ipam leased %q, which is no IPv%d address", cidr, family)
	}
	return p.Addr(), nil
}

// families are those of the pod ranges, in order.
func families(ranges []nodestate.Range) []int {
	var out []int
	for _, r := range ranges {
		if f := familyOf(r.Prefix.Addr()); r.Kind == nodestate.RangePod && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return out
}

// hampered says why the fabric is not programmed, while it is not.
func (m *Member) hampered(why string) {
	m.mu.Lock()
	changed := false
	select {
	case <-m.programmed:
	default:
		changed = m.trouble != why
		m.trouble = why
	}
	m.mu.Unlock()
	if changed {
		nudge(m.news)
	}
}

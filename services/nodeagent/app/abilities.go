package app

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/kernel/announce"
	"podwire.dev/services/nodeagent/internal/kernel/ct"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

// Ability is something that an agent does to the kernel of its node, and what came of trying it.
type Ability struct {
	// Name says what it is, for people.
	Name string
	// Without is what does not work on a kernel that refuses it.
	Without string
	Err     error
}

// Trial is where abilities are tried: in a network namespace that is made for it and thrown away afterwards.
type Trial struct {
	// Dir is an empty directory.
	Dir string
	// Underlay is an address of the calling thread's network namespace, which stands for a node's.
	Underlay netip.Addr
}

// TryKernel does once, in the calling thread's network namespace, what an agent does to the kernel of its node. Each
// ability is tried, also where one before it failed.
func TryKernel(t Trial) []Ability {
	return []Ability{
		{"the fabric: a VXLAN device, neighbours, routes of both families", "packets between nodes", t.fabric()},
		{"the nftables table: maps, concatenations, numgen, NAT, conntrack marks, in one transaction", "Services, NetworkPolicy, the gate of pods", t.rules()},
		{"a pod's link: a veth pair with permanent neighbours", "pods", t.link()},
		{"conntrack: listing flows", "ending flows that a change forbids", t.flows()},
		{"load balancer addresses: ARP and neighbour discovery on a raw socket", "Services of type LoadBalancer", t.announce()},
		{"host settings: forwarding and the firewalls of others", "packets through the node", t.host()},
	}
}

func (t Trial) fabric() error {
	const self, peer = "self", "peer"
	f, err := fabric.Open(fabric.Config{Self: self, Underlay: t.Underlay})
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.EnsureDevice(); err != nil {
		return err
	}
	member := func(name string, underlay netip.Addr, v4, v6 string) nodestate.Member {
		m := nodestate.Member{
			Name: name, Kind: nodestate.MemberNode, Underlay: []netip.Addr{underlay}, TunnelMAC: nodestate.TunnelMACOf(name),
			Blocks: []netip.Prefix{netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)},
		}
		for _, b := range m.Blocks {
			m.Tunnel = append(m.Tunnel, b.Addr())
		}
		return m
	}
	_, err = f.Apply([]nodestate.Member{
		member(self, t.Underlay, "10.244.0.0/26", "fd00:10:244::/122"),
		member(peer, t.Underlay.Next(), "10.244.0.64/26", "fd00:10:244::40/122"),
	}, []nodestate.Range{
		{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("10.244.0.0/16")},
		{Kind: nodestate.RangeService, Prefix: netip.MustParsePrefix("10.96.0.0/16")},
	})
	return errors.Join(err, f.Remove())
}

func (t Trial) rules() error {
	table, err := nft.Open(0)
	if err != nil {
		return err
	}
	_, err = table.Install(plan.Elements{})
	if err == nil {
		_, err = table.Remove()
	}
	return errors.Join(err, table.Close())
}

func (t Trial) link() error {
	links, err := link.Open()
	if err != nil {
		return err
	}
	defer links.Close()
	pod, err := newNetNS()
	if err != nil {
		return err
	}
	defer pod.Close()
	const uid = "podwire-trial"
	_, err = links.Attach(link.Pod{
		UID: uid, Namespace: "default", Name: "trial", NetNS: fmt.Sprintf("/proc/self/fd/%d", pod.Fd()), MTU: 1400,
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd00:10:244::1")},
	})
	return errors.Join(err, links.Detach(uid))
}

// newNetNS makes a network namespace that lives as long as the file.
func newNetNS() (ns *os.File, err error) {
	var wg sync.WaitGroup
	wg.Go(func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
	})
	wg.Wait()
	return ns, errs.WrapAs(errs.Unavailable, err, "network namespace of a pod")
}

func (t Trial) flows() error {
	flows, err := ct.Open(0)
	if err != nil {
		return err
	}
	err = flows.Each(context.Background(), func(*ct.Entry) {})
	return errors.Join(err, flows.Close())
}

func (t Trial) announce() error {
	underlay, err := t.link0()
	if err != nil {
		return err
	}
	a, err := announce.Open(announce.Config{Link: underlay})
	if err != nil {
		return err
	}
	_, err = a.List()
	return errors.Join(err, a.Close())
}

func (t Trial) host() error {
	underlay, err := t.link0()
	if err != nil {
		return err
	}
	h, err := host.Open(host.Config{Record: filepath.Join(t.Dir, fileHost), Underlay: underlay, TunnelPort: fabric.DefaultPort})
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.Apply()
	return errors.Join(err, h.Restore())
}

// link0 is the link that has the underlay address.
func (t Trial) link0() (string, error) {
	f, err := fabric.Open(fabric.Config{Self: "self", Underlay: t.Underlay})
	if err != nil {
		return "", err
	}
	defer f.Close()
	u, err := f.FindUnderlay()
	return u.Link, err
}

// HostSetting is a setting of this host that an agent on it would change.
type HostSetting struct {
	// Name is a sysctl's path, or a chain of another program's firewall; Actual and Wanted are its values.
	Name, Actual, Wanted string
}

// HostSettings lists what an agent in the calling thread's network namespace would change there, with its underlay on
// link. It changes nothing; dir is an empty directory.
func HostSettings(dir, link string) ([]HostSetting, error) {
	h, err := host.Open(host.Config{Record: filepath.Join(dir, fileHost), Underlay: link, TunnelPort: fabric.DefaultPort})
	if err != nil {
		return nil, err
	}
	defer h.Close()
	states, err := h.Check()
	if err != nil {
		return nil, errs.Wrap(err, "host settings")
	}
	var out []HostSetting
	for _, s := range slices.DeleteFunc(states, host.State.OK) {
		out = append(out, HostSetting{Name: s.Name, Actual: s.Actual, Wanted: s.Wanted})
	}
	return out, nil
}

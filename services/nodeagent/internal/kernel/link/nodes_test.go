package link_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/kernel/link"
)

// machine is a hostile host with everything of this directory on it, and one pod.
type machine struct {
	*testnet.NS
	fabric *fabric.Fabric
	host   *host.Host
	links  *link.Links
	row    nodestate.Member
	pod    *testnet.NS
	spec   link.Pod
}

func newMachine(t *testing.T, n *testnet.Net, i int, underlay netip.Prefix, plug func(*testnet.NS, ...netip.Prefix)) *machine {
	t.Helper()
	m := &machine{NS: n.AddNS(fmt.Sprintf("node-%d", i))}
	plug(m.NS, underlay)
	m.Hostile(testnet.Docker)
	var device fabric.Device
	m.Must(func() error {
		var err error
		if m.fabric, err = fabric.Open(fabric.Config{Self: m.Name(), Underlay: underlay.Addr()}); err != nil {
			return err
		}
		if device, err = m.fabric.EnsureDevice(); err != nil {
			return err
		}
		m.host, err = host.Open(host.Config{
			Record: filepath.Join(t.TempDir(), "host.json"), Underlay: device.Underlay.Link,
			TunnelPort: fabric.DefaultPort, TunnelPeers: []netip.Prefix{underlay.Masked()},
		})
		if err != nil {
			return err
		}
		if _, err := m.host.Apply(); err != nil {
			return err
		}
		m.links, err = link.Open()
		return err
	})
	t.Cleanup(m.fabric.Close)
	t.Cleanup(m.host.Close)
	t.Cleanup(m.links.Close)
	m.row = nodestate.Member{
		Name: m.Name(), Kind: nodestate.MemberNode, Underlay: []netip.Addr{underlay.Addr()}, TunnelMAC: device.MAC,
		Blocks: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/26", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/122", i)),
		},
	}
	m.pod = n.AddNS(fmt.Sprintf("pod-%d", i))
	m.spec = link.Pod{UID: "uid-" + m.pod.Name(), Namespace: "default", Name: m.pod.Name(), NetNS: m.pod.Path(), MTU: device.MTU}
	for _, b := range m.row.Blocks {
		m.row.Tunnel = append(m.row.Tunnel, b.Addr().Next())
		m.spec.Addresses = append(m.spec.Addresses, b.Addr().Next().Next())
	}
	return m
}

func TestPodsOfHostileNodesReachEachOther(t *testing.T) {
	for name, underlay := range map[string]string{"IPv4 underlay": "172.30.0.%d/24", "IPv6 underlay": "fd00:172:30::%d/64"} {
		t.Run(name, func(t *testing.T) {
			n := testnet.New(t)
			plug := n.Underlay("underlay")
			var machines []*machine
			var members []nodestate.Member
			for i := 1; i <= 3; i++ {
				m := newMachine(t, n, i, netip.MustParsePrefix(fmt.Sprintf(underlay, i)), plug)
				machines, members = append(machines, m), append(members, m.row)
			}
			ranges := []nodestate.Range{
				{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("10.244.0.0/16")},
				{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("fd00:10:244::/48")},
			}
			for _, m := range machines {
				for _, a := range m.spec.Addresses {
					m.pod.ServeUDP(m.pod.Name(), netip.AddrPortFrom(a, 53))
					m.pod.ServeTCP(m.pod.Name(), netip.AddrPortFrom(a, 80))
				}
				m.Must(func() error {
					if _, err := m.fabric.Apply(members, ranges); err != nil {
						return err
					}
					_, err := m.links.Attach(m.spec)
					return err
				})
			}
			everyPair(t, machines)
		})
	}
}

// everyPair tries each pod to each other, and each host to each pod, first with one datagram, which nobody repeats.
func everyPair(t *testing.T, machines []*machine) {
	t.Helper()
	for _, from := range machines {
		for _, to := range machines {
			for i, a := range to.spec.Addresses {
				sources := map[*testnet.NS]netip.Addr{from.pod: from.spec.Addresses[i], from.NS: from.row.Tunnel[i]}
				for s, source := range sources {
					r := s.UDP(testnet.Attempt{Target: netip.AddrPortFrom(a, 53)})
					// A host reaches its own pods from an address of its choice.
					if r.Outcome != testnet.Reached || r.Server != to.pod.Name() || from != to && r.Client.Addr() != source {
						t.Errorf("first datagram from %s to %s: %+v", s.Name(), a, r)
					}
					header := 20 + 8
					if a.Is6() {
						header = 40 + 8
					}
					full := make([]byte, from.spec.MTU-header-64)
					if r := s.UDP(testnet.Attempt{Target: netip.AddrPortFrom(a, 53), Payload: full}); r.Outcome != testnet.Reached {
						t.Errorf("full datagram from %s to %s: %+v", s.Name(), a, r)
					}
					large := make([]byte, 1<<18)
					if r := s.TCP(testnet.Attempt{Target: netip.AddrPortFrom(a, 80), Payload: large}); r.Outcome != testnet.Reached {
						t.Errorf("TCP from %s to %s: %+v", s.Name(), a, r)
					}
				}
			}
		}
	}
}

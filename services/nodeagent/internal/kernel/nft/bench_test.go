package nft_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

// BenchmarkOneEndpoint adds and removes one endpoint of one service among many services of ten endpoints: planning
// and the commits, the late one included.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, services := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			table, err := nft.Open(testnet.New(b).AddNS("node").FD())
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = table.Close() }()
			p := plan.New(plan.Node{Name: "node-1"}, plan.NewAllocator())
			now := time.Unix(1000, 0)
			var rows []nodestate.Row
			for i := range services {
				k := nodestate.ServiceKey{Namespace: "ns", Service: fmt.Sprint(i), Protocol: nodestate.TCP}
				rows = append(rows, nodestate.ServicePort{
					ServiceKey: k, Port: 80, ClusterAddresses: []netip.Addr{address(0x0a600000 + uint32(i))},
					SourceMode:     nodestate.SourceAll,
					InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
				})
				for j := range 10 {
					rows = append(rows, nodestate.Endpoint{
						ServiceKey: k, Address: address(0x0af40000 + uint32(10*i+j)), Backend: 80, State: nodestate.EndpointReady,
					})
				}
			}
			if err := p.Apply(nodestate.Delta{Upserts: rows}); err != nil {
				b.Fatal(err)
			}
			if _, err := p.Commit(now); err != nil {
				b.Fatal(err)
			}
			if _, err := table.Install(p.Desired()); err != nil {
				b.Fatal(err)
			}
			extra := nodestate.Endpoint{
				ServiceKey: nodestate.ServiceKey{Namespace: "ns", Service: "3", Protocol: nodestate.TCP},
				Address:    address(0x0b000001), Backend: 80, State: nodestate.EndpointReady,
			}
			for b.Loop() {
				for _, d := range []nodestate.Delta{
					{Upserts: []nodestate.Row{extra}}, {Removes: []nodestate.Ref{nodestate.RefOf(extra)}},
				} {
					if err := p.Apply(d); err != nil {
						b.Fatal(err)
					}
					c, err := p.Commit(now)
					if err != nil {
						b.Fatal(err)
					}
					for _, step := range []plan.Change{c, {Remove: c.Late}} {
						if _, err := table.Apply(step); err != nil {
							b.Fatal(err)
						}
					}
				}
			}
		})
	}
}

func address(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, v)))
}

package zone_test

import (
	"fmt"
	"net/netip"
	"testing"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/dns/internal/zone"
)

// large is a World of Services with ten endpoints each, and one more that is headless.
func large(services int) *zone.World {
	w := zone.NewWorld("cluster.local", 7)
	w.SetRanges(ranges("10.0.0.0/8"))
	pod := netip.MustParseAddr("10.128.0.0")
	vip := netip.MustParseAddr("10.96.0.0")
	for i := range services {
		ns := fmt.Sprintf("ns-%d", i%100)
		name := fmt.Sprintf("%s/svc-%d", ns, i)
		vip = vip.Next()
		w.SetNamespace(ns)
		w.SetService(serviceOf(name, []string{vip.String()}, "http:80:TCP"))
		var endpoints []string
		for range 10 {
			pod = pod.Next()
			endpoints = append(endpoints, pod.String())
		}
		w.SetSlice(sliceOf(name, name[len(ns)+1:], []string{"http:8080:TCP"}, endpoints...))
	}
	w.SetService(serviceOf("ns-0/headless", []string{"None"}))
	return w
}

func slicesOf() [2]*objectv1.EndpointSlice {
	return [2]*objectv1.EndpointSlice{
		sliceOf("ns-0/headless-1", "headless", []string{"http:80:TCP"}, "10.128.0.1", "10.128.0.2", "10.128.0.3"),
		sliceOf("ns-0/headless-1", "headless", []string{"http:80:TCP"}, "10.128.0.1", "10.128.0.4", "10.128.0.3"),
	}
}

// BenchmarkChange is one change of endpoints to the View that answers with it.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			w := large(n)
			w.Publish(1)
			change := slicesOf()
			for i := 0; b.Loop(); i++ {
				w.SetSlice(change[i%2])
				w.Publish(int64(i))
			}
		})
	}
}

// BenchmarkAnswer is one question to the zone, without a socket.
func BenchmarkAnswer(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		v := large(n).Publish(1)
		for _, name := range []string{"svc-7.ns-7.svc.cluster.local.", "nobody.ns-7.svc.cluster.local."} {
			b.Run(fmt.Sprintf("services=%d/%s", n, name[:3]), func(b *testing.B) {
				var a zone.Answer
				b.ReportAllocs()
				for b.Loop() {
					v.Answer(zone.Question{Name: name, Type: zone.TypeA}, &a)
				}
			})
		}
	}
}

// BenchmarkLoad builds the View of 10,000 Services with 100,000 endpoints.
func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		large(10_000).Publish(1)
	}
}

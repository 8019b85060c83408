package demo

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

const freshService = `apiVersion: v1
kind: Service
metadata:
  name: fresh
spec:
  selector:
    app: test
  ports:
    - port: 80
`

// checkNames asks for names as programs in pods do. The endpoint my-app-2 has died by now.
func (d *demo) checkNames(ctx context.Context) error {
	s, err := d.service(ctx, "demo-service")
	if err != nil {
		return err
	}
	pod := d.inPod("client-1")
	d.resolves(ctx, "a Service, by the search path", pod, "demo-service", s.Spec.ClusterIP)
	d.resolves(ctx, "with its namespace", d.inPod("client-3"), "demo-service.default", s.Spec.ClusterIP)
	d.resolves(ctx, "in full", pod, "demo-service.default.svc.cluster.local.", s.Spec.ClusterIP)
	d.resolves(ctx, "a headless Service, by its ready endpoints", pod, "my-app-pods", d.pods["my-app-1"].v4, d.pods["my-app-3"].v4)
	srv := "_app._tcp.my-app-pods.default.svc.cluster.local"
	a := d.exec(ctx, pod, "probe", "resolve", srv, "SRV")
	d.judge("SRV records of a named port", verdict(a.code == 0 && strings.Count(a.out, " 9376 ") == 2),
		fmt.Sprintf("%s -> resolve %s SRV: %s", pod.name, srv, a.text()))
	a = d.exec(ctx, pod, "probe", "resolve", s.Spec.ClusterIP)
	d.judge("an address back to its name", verdict(a.code == 0 && strings.HasSuffix(strings.TrimSpace(a.out), " demo-service.default.svc.cluster.local.")),
		fmt.Sprintf("%s -> resolve %s: %s", pod.name, s.Spec.ClusterIP, a.text()))
	unknown := "nobody.default.svc.cluster.local."
	a = d.exec(ctx, pod, "probe", "resolve", unknown)
	d.judge("an unknown name is NXDOMAIN, at once", verdict(a.code == 1 && strings.Contains(a.err, "NXDOMAIN")),
		fmt.Sprintf("%s -> resolve %s: %s", pod.name, unknown, a.text()))
	file, err := d.file("fresh.yaml", []byte(freshService))
	if err != nil {
		return err
	}
	d.applied = append(d.applied, file)
	if _, err := d.must(ctx, "", "apply", "--wait", "-f", file); err != nil {
		return err
	}
	if s, err = d.service(ctx, "fresh"); err != nil {
		return err
	}
	d.resolves(ctx, "a new Service, right after apply --wait", d.inPod("client-2"), "fresh", s.Spec.ClusterIP)
	f, end, err := d.site.foreign(ctx)
	if err != nil {
		return err
	}
	defer end()
	d.resolves(ctx, "a name outside, forwarded to "+f.server, pod, f.name, f.addr.String())
	return nil
}

// resolves asks the system's resolver in a pod for the IPv4 addresses of a name.
func (d *demo) resolves(ctx context.Context, what string, from place, name string, want ...string) {
	command := append(slices.Clone(d.site.resolver()), "ahostsv4", name)
	if d.site.resolver() == nil {
		command = []string{"probe", "resolve", name, "A"}
	}
	a := d.exec(ctx, from, command...)
	got := addresses(a.out)
	slices.Sort(want)
	d.judge(what, verdict(a.code == 0 && slices.Equal(got, want)),
		fmt.Sprintf("%s -> %s: %s", from.name, strings.Join(command, " "), strings.Join(append(got, strings.TrimSpace(a.err)), " ")))
}

// addresses are those that an output has in words of their own, sorted, each once.
func addresses(out string) []string {
	var list []string
	for _, word := range strings.Fields(out) {
		if _, err := netip.ParseAddr(word); err == nil {
			list = append(list, word)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// serveName answers for one name on a socket until end is called.
func serveName(sock net.PacketConn, f foreignName) (end func()) {
	server := &dns.Server{PacketConn: sock, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Authoritative = true
		switch q := q.Question[0]; {
		case !strings.EqualFold(q.Name, f.name):
			m.Rcode = dns.RcodeNameError
		case q.Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: f.addr.AsSlice()}}
		}
		_ = w.WriteMsg(m) // a client that went away asks again
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.ActivateAndServe() }) // ends with the socket
	return func() {
		_ = sock.Close()
		serving.Wait()
	}
}

package zone_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/dns/internal/zone"
)

func meta(ref string) *objectv1.ObjectMeta {
	ns, name, _ := strings.Cut(ref, "/")
	return &objectv1.ObjectMeta{Namespace: ns, Name: name}
}

func serviceOf(ref string, ips []string, ports ...string) *objectv1.Service {
	s := &objectv1.Service{Metadata: meta(ref), Spec: &objectv1.ServiceSpec{ClusterIps: ips}}
	if len(ips) > 0 {
		s.Spec.ClusterIp = ips[0]
	}
	for _, p := range ports {
		name, number, protocol := "", int32(0), ""
		if _, err := fmt.Sscanf(strings.ReplaceAll(p, ":", " "), "%s %d %s", &name, &number, &protocol); err != nil {
			panic(err)
		}
		s.Spec.Ports = append(s.Spec.Ports, &objectv1.ServicePort{Name: strings.TrimPrefix(name, "-"), Port: number, Protocol: &protocol})
	}
	return s
}

// sliceOf has endpoints such as "10.244.0.5", "10.244.0.6=web-0" and "!10.244.0.7", which is not ready.
func sliceOf(ref, service string, ports []string, endpoints ...string) *objectv1.EndpointSlice {
	s := &objectv1.EndpointSlice{Metadata: meta(ref)}
	s.Metadata.Labels = map[string]string{"kubernetes.io/service-name": service}
	for _, p := range serviceOf("x/x", nil, ports...).GetSpec().GetPorts() {
		s.Ports = append(s.Ports, &objectv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: p.Protocol})
	}
	for _, text := range endpoints {
		text, unready := strings.CutPrefix(text, "!")
		addr, host, named := strings.Cut(text, "=")
		e := &objectv1.Endpoint{Addresses: []string{addr}}
		if named {
			e.Hostname = &host
		}
		if unready {
			ready := false
			e.Conditions = &objectv1.EndpointConditions{Ready: &ready}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func podOf(ref, phase string, ips ...string) *objectv1.Pod {
	p := &objectv1.Pod{Metadata: meta(ref), Status: &objectv1.PodStatus{Phase: phase}}
	for _, ip := range ips {
		p.Status.PodIps = append(p.Status.PodIps, &objectv1.PodIP{Ip: ip})
	}
	return p
}

func ranges(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// sample is the World of TestAnswers.
func sample() *zone.World {
	w := zone.NewWorld("Cluster.Local.", 7)
	w.SetRanges(ranges("10.244.0.0/16", "fd00:10:244::/48", "10.96.0.0/12", "fd00:10:96::/112", "172.20.1.0/26"))
	for _, ns := range []string{"default", "empty", "kube-system"} {
		w.SetNamespace(ns)
	}
	w.SetService(serviceOf("kube-system/kube-dns", []string{"10.96.0.10", "fd00:10:96::a"}, "dns:53:UDP", "dns-tcp:53:TCP"))
	w.SetService(serviceOf("default/web", []string{"10.96.1.1", "fd00:10:96::1"}, "http:80:TCP", "-:81:TCP", "quic:443:UDP"))
	w.SetSlice(sliceOf("default/web-1", "web", []string{"http:8080:TCP"}, "10.244.0.5", "!10.244.0.6"))
	w.SetService(serviceOf("default/plain", []string{"10.96.1.2"}, "-:80:TCP"))
	w.SetService(serviceOf("default/db", []string{"None"}, "sql:5432:TCP"))
	w.SetSlice(sliceOf("default/db-1", "db", []string{"sql:5432:TCP", "-:9:TCP"}, "10.244.1.1=db-0", "10.244.1.2", "!10.244.1.3=db-2"))
	w.SetSlice(sliceOf("default/db-2", "db", []string{"sql:5432:TCP"}, "fd00:10:244::1=db-0", "fd00:10:244::2"))
	w.SetService(serviceOf("default/four", []string{"None"}))
	w.SetSlice(sliceOf("default/four-1", "four", nil, "10.244.1.9"))
	w.SetService(serviceOf("default/asleep", []string{"None"}, "sql:5432:TCP"))
	w.SetSlice(sliceOf("default/asleep-1", "asleep", []string{"sql:5432:TCP"}, "!10.244.2.1=a"))
	eager := serviceOf("default/eager", []string{"None"})
	eager.Spec.PublishNotReadyAddresses = true
	w.SetService(eager)
	w.SetSlice(sliceOf("default/eager-1", "eager", nil, "!10.244.2.2=e"))
	for name, target := range map[string]string{"out": "Example.ORG", "in": "web.default.svc.cluster.local", "dead": "nobody.default.svc.cluster.local.",
		"ring-a": "ring-b.default.svc.cluster.local", "ring-b": "ring-a.default.svc.cluster.local", "twice": "out.default.svc.cluster.local", "digits": "192.0.2.1"} {
		s := serviceOf("default/"+name, nil)
		kind := "ExternalName"
		s.Spec.Type, s.Spec.ExternalName = &kind, target
		w.SetService(s)
	}
	w.SetPod(podOf("default/p", "Running", "10.244.0.5", "fd00:10:244::5"))
	w.SetPod(podOf("default/done", "Succeeded", "10.244.0.99"))
	w.SetPod(podOf("bare/q", "Running", "10.244.0.6"))
	return w
}

// TestAnswers asks for every name of the specification's schema, by section, and for those beside it.
func TestAnswers(t *testing.T) {
	t.Parallel()
	v := sample().Publish(42)
	for _, c := range []struct {
		name, kind string
		outcome    zone.Outcome
		records    string // without the names of the question
		reason     string // a part of it
	}{
		// 2.1, 2.2
		{"dns-version.cluster.local.", "TXT", zone.Found, "1.1.0", "version"},
		{"dns-version.cluster.local.", "A", zone.NoData, "", ""},
		{"x.dns-version.cluster.local.", "TXT", zone.NoName, "", "no names of this form"},
		{"WEB.Default.SVC.Cluster.LOCAL.", "A", zone.Found, "10.96.1.1", "ClusterIP of Service default/web"},
		// 2.3
		{"web.default.svc.cluster.local.", "AAAA", zone.Found, "fd00:10:96::1", ""},
		{"plain.default.svc.cluster.local.", "AAAA", zone.NoData, "", "no address of this family"},
		{"web.default.svc.cluster.local.", "TXT", zone.NoData, "", "no record of this type"},
		{"_http._tcp.web.default.svc.cluster.local.", "SRV", zone.Found, "50 80 web.default.svc.cluster.local.", "port _http._tcp of Service default/web"},
		{"_http._tcp.web.default.svc.cluster.local.", "A", zone.NoData, "", ""},
		{"_quic._udp.web.default.svc.cluster.local.", "SRV", zone.Found, "50 443 web.default.svc.cluster.local.", ""},
		{"_http._udp.web.default.svc.cluster.local.", "SRV", zone.NoName, "", "no port _http._udp"},
		{"_tcp.web.default.svc.cluster.local.", "SRV", zone.NoData, "", "only names below"},
		{"_sctp.web.default.svc.cluster.local.", "SRV", zone.NoName, "", ""},
		{"_._tcp.plain.default.svc.cluster.local.", "SRV", zone.NoName, "", ""},
		{"plain.default.svc.cluster.local.", "SRV", zone.NoData, "", ""},
		{"1.1.96.10.in-addr.arpa.", "PTR", zone.Found, "web.default.svc.cluster.local.", "10.96.1.1 is an address of Service default/web"},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.", "PTR", zone.NoName, "", "fd00:10:96::2"},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.", "PTR", zone.Found, "web.default.svc.cluster.local.", ""},
		// 2.4
		{"db.default.svc.cluster.local.", "A", zone.Found, "10.244.1.1 10.244.1.2", "4 of its 5 endpoints are ready"},
		{"db.default.svc.cluster.local.", "AAAA", zone.Found, "fd00:10:244::1 fd00:10:244::2", ""},
		// Not NXDOMAIN, as section 2.4.1 has it for each family: that would deny the A records, too (RFC 8020).
		{"four.default.svc.cluster.local.", "AAAA", zone.NoData, "", "no address of this family"},
		{"asleep.default.svc.cluster.local.", "A", zone.NoName, "", "none of its 1 endpoints is ready"},
		{"_sql._tcp.asleep.default.svc.cluster.local.", "SRV", zone.NoName, "", ""},
		{"a.asleep.default.svc.cluster.local.", "A", zone.NoName, "", "no ready endpoint a"},
		{"eager.default.svc.cluster.local.", "A", zone.Found, "10.244.2.2", ""},
		{"db-0.db.default.svc.cluster.local.", "A", zone.Found, "10.244.1.1", "endpoint db-0 of Service default/db"},
		{"db-0.db.default.svc.cluster.local.", "AAAA", zone.Found, "fd00:10:244::1", ""},
		{"db-2.db.default.svc.cluster.local.", "A", zone.NoName, "", ""},
		{"10-244-1-2.db.default.svc.cluster.local.", "A", zone.Found, "10.244.1.2", ""},
		{"10-244-1-2.db.default.svc.cluster.local.", "AAAA", zone.NoData, "", ""},
		{"fd00-10-244--2.db.default.svc.cluster.local.", "AAAA", zone.Found, "fd00:10:244::2", ""},
		{"x.db-0.db.default.svc.cluster.local.", "A", zone.NoName, "", ""},
		{
			"_sql._tcp.db.default.svc.cluster.local.", "SRV", zone.Found,
			"25 5432 10-244-1-2.db.default.svc.cluster.local. 25 5432 db-0.db.default.svc.cluster.local. 25 5432 fd00-10-244--2.db.default.svc.cluster.local.", "",
		},
		{"1.1.244.10.in-addr.arpa.", "PTR", zone.Found, "db-0.db.default.svc.cluster.local.", ""},
		{"1.1.244.10.in-addr.arpa.", "A", zone.NoData, "", ""},
		{"3.1.244.10.in-addr.arpa.", "PTR", zone.NoName, "", "10.244.1.3 is an address of the cluster that no Service and no ready endpoint has"},
		{"x.1.1.244.10.in-addr.arpa.", "PTR", zone.NoName, "", "not that of an address"},
		{"01.1.244.10.in-addr.arpa.", "PTR", zone.NoName, "", ""},
		{"1.244.10.in-addr.arpa.", "PTR", zone.NoData, "", ""},
		{"244.10.in-addr.arpa.", "SOA", zone.Found, "42", "top of the zone"},
		{"107.10.in-addr.arpa.", "NS", zone.Found, "ns.dns.cluster.local.", ""},
		{"112.10.in-addr.arpa.", "NS", zone.Outside, "", "outside"},
		{"10.in-addr.arpa.", "NS", zone.Outside, "", ""},
		{"1.2.0.192.in-addr.arpa.", "PTR", zone.Outside, "", ""},
		{"5.1.20.172.in-addr.arpa.", "PTR", zone.NoData, "", "top"},
		{"65.1.20.172.in-addr.arpa.", "PTR", zone.Outside, "", ""},
		// 2.5
		{"out.default.svc.cluster.local.", "CNAME", zone.Found, "example.org.", "ExternalName: example.org."},
		{"out.default.svc.cluster.local.", "A", zone.Leads, "example.org.", "ExternalName"},
		{"twice.default.svc.cluster.local.", "A", zone.Leads, "out.default.svc.cluster.local. example.org.", ""},
		{"digits.default.svc.cluster.local.", "A", zone.Leads, "192.0.2.1.", ""},
		{"in.default.svc.cluster.local.", "AAAA", zone.Found, "web.default.svc.cluster.local. fd00:10:96::1", ""},
		{"in.default.svc.cluster.local.", "TXT", zone.NoData, "web.default.svc.cluster.local.", ""},
		{"dead.default.svc.cluster.local.", "A", zone.NoName, "nobody.default.svc.cluster.local.", "Service default/nobody does not exist"},
		{"ring-a.default.svc.cluster.local.", "A", zone.Endless, "", "circle"},
		{"x.out.default.svc.cluster.local.", "A", zone.NoName, "", ""},
		// Pods
		{"10-244-0-5.default.pod.cluster.local.", "A", zone.Found, "10.244.0.5", "Pod default/p has the address 10.244.0.5"},
		{"10-244-0-5.default.pod.cluster.local.", "AAAA", zone.NoData, "", ""},
		{"fd00-10-244--5.default.pod.cluster.local.", "AAAA", zone.Found, "fd00:10:244::5", ""},
		{"10-244-0-6.default.pod.cluster.local.", "A", zone.NoName, "", "no Pod of namespace default has the address 10.244.0.6"},
		{"10-244-0-99.default.pod.cluster.local.", "A", zone.NoName, "", ""},
		{"10-244-0-6.bare.pod.cluster.local.", "A", zone.Found, "10.244.0.6", ""},
		{"p.default.pod.cluster.local.", "A", zone.NoName, "", "not that of an address"},
		{"x.10-244-0-5.default.pod.cluster.local.", "A", zone.NoName, "", ""},
		// Inner names, and what is not there.
		{"cluster.local.", "SOA", zone.Found, "42", ""},
		{"cluster.local.", "NS", zone.Found, "ns.dns.cluster.local.", ""},
		{"cluster.local.", "A", zone.NoData, "", ""},
		{"ns.dns.cluster.local.", "AAAA", zone.Found, "fd00:10:96::a", "kube-system/kube-dns"},
		{"dns.cluster.local.", "A", zone.NoData, "", ""},
		{"svc.cluster.local.", "A", zone.NoData, "", ""},
		{"empty.svc.cluster.local.", "A", zone.NoData, "", ""},
		{"empty.pod.cluster.local.", "A", zone.NoData, "", ""},
		{"bare.pod.cluster.local.", "A", zone.NoData, "", ""},
		{"bare.svc.cluster.local.", "A", zone.NoName, "", "Namespace bare does not exist"},
		{"nobody.default.svc.cluster.local.", "A", zone.NoName, "", "Service default/nobody does not exist"},
		{"*.default.svc.cluster.local.", "A", zone.NoName, "", ""},
		{"any.any.svc.cluster.local.", "A", zone.NoName, "", ""},
		{"a.b.c.d.e.f.svc.cluster.local.", "A", zone.NoName, "", ""},
		{`web\.default.svc.cluster.local.`, "A", zone.NoName, "", ""},
		{`x\.cluster.local.`, "A", zone.Outside, "", ""},
		{"ⱤLOCAL.cluster.local.", "A", zone.NoName, "", ""},
		{"notcluster.local.", "A", zone.Outside, "", ""},
		{"local.", "A", zone.Outside, "", ""},
		{".", "NS", zone.Outside, "", ""},
	} {
		var a zone.Answer
		v.Answer(zone.Question{Name: c.name, Type: kinds[c.kind]}, &a)
		if got := data(a.Records); a.Outcome != c.outcome || got != c.records {
			t.Errorf("%s %s: %d %q, want %d %q", c.name, c.kind, a.Outcome, got, c.outcome, c.records)
		}
		if reason := a.Reason.String(); reason == "" || !strings.Contains(reason, c.reason) {
			t.Errorf("%s %s: %q, want %q", c.name, c.kind, reason, c.reason)
		}
		if negative := a.Outcome == zone.NoName || a.Outcome == zone.NoData; negative != (len(a.Authority) == 1) {
			t.Errorf("%s %s: outcome %d with authority %v", c.name, c.kind, a.Outcome, a.Authority)
		}
		if v.Ours(c.name) == (a.Outcome == zone.Outside) {
			t.Errorf("%s: ours %v, outcome %d", c.name, v.Ours(c.name), a.Outcome)
		}
		if len(a.Records) > 0 && a.Records[0].Name != c.name {
			t.Errorf("%s: owner %s", c.name, a.Records[0].Name)
		}
	}
}

var kinds = map[string]zone.Type{
	"A": zone.TypeA, "AAAA": zone.TypeAAAA, "SRV": zone.TypeSRV, "PTR": zone.TypePTR, "CNAME": zone.TypeCNAME,
	"TXT": zone.TypeTXT, "SOA": zone.TypeSOA, "NS": zone.TypeNS,
}

// data is what the records say, sorted by name but for aliases, which come in their order.
func data(list []zone.Record) string {
	var aliases, out []string
	for _, r := range list {
		switch r.Type {
		case zone.TypeA, zone.TypeAAAA:
			out = append(out, r.Addr.String())
		case zone.TypeCNAME:
			aliases = append(aliases, r.Target)
		case zone.TypeSRV:
			out = append(out, fmt.Sprintf("%d %d %s", r.Weight, r.Port, r.Target))
		case zone.TypeTXT:
			out = append(out, r.Text)
		case zone.TypeSOA:
			out = append(out, fmt.Sprint(r.SOA.Serial))
		default:
			out = append(out, r.Target)
		}
	}
	slices.Sort(out)
	return strings.Join(append(aliases, out...), " ")
}

// TestTurns has each address of a name come first in its turn.
func TestTurns(t *testing.T) {
	t.Parallel()
	v := sample().Publish(1)
	first := map[string]int{}
	for turn := range uint32(8) {
		var a zone.Answer
		v.Answer(zone.Question{Name: "db.default.svc.cluster.local.", Type: zone.TypeA, Turn: turn}, &a)
		first[a.Records[0].Addr.String()]++
	}
	if first["10.244.1.1"] != 4 || first["10.244.1.2"] != 4 {
		t.Errorf("first came %v", first)
	}
}

// TestViewsStay changes a World at random, and finds each View equal to a World made anew of the same objects, and each
// earlier View as it was.
func TestViewsStay(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	type objects struct {
		namespaces map[string]bool
		services   map[string]*objectv1.Service
		slices     map[string]*objectv1.EndpointSlice
		pods       map[string]*objectv1.Pod
	}
	held := objects{map[string]bool{}, map[string]*objectv1.Service{}, map[string]*objectv1.EndpointSlice{}, map[string]*objectv1.Pod{}}
	anew := func() *zone.View {
		w := zone.NewWorld("cluster.local", 99)
		w.SetRanges(ranges("10.0.0.0/8"))
		for ns := range held.namespaces {
			w.SetNamespace(ns)
		}
		for _, s := range held.services {
			w.SetService(s)
		}
		for _, s := range held.slices {
			w.SetSlice(s)
		}
		for _, p := range held.pods {
			w.SetPod(p)
		}
		return w.Publish(0)
	}
	var questions []zone.Question
	for _, ns := range []string{"a", "b"} {
		for _, name := range []string{"", "x.", "y.", "h.x.", "h.y.", "_p._tcp.x.", "_tcp.y."} {
			for _, kind := range []zone.Type{zone.TypeA, zone.TypeSRV} {
				questions = append(questions, zone.Question{Name: name + ns + ".svc.cluster.local.", Type: kind})
			}
		}
		questions = append(questions, zone.Question{Name: "10-0-0-1." + ns + ".pod.cluster.local.", Type: zone.TypeA})
	}
	for i := range 4 {
		questions = append(questions, zone.Question{Name: fmt.Sprintf("%d.0.0.10.in-addr.arpa.", i), Type: zone.TypePTR})
	}
	said := func(v *zone.View) []string {
		var out []string
		for _, q := range questions {
			var a zone.Answer
			v.Answer(q, &a)
			out = append(out, fmt.Sprint(q.Name, a.Outcome, data(a.Records), data(a.Extra), a.Reason))
		}
		return out
	}
	w := zone.NewWorld("cluster.local", 5)
	w.SetRanges(ranges("10.0.0.0/8"))
	type earlier struct {
		view *zone.View
		said []string
	}
	var before []earlier
	for step := range 2000 {
		ns := pick("a", "b")
		name := ns + "/" + pick("x", "y")
		ref := zone.Ref{Namespace: ns, Name: name[2:]}
		switch random.IntN(8) {
		case 0:
			held.namespaces[ns] = true
			w.SetNamespace(ns)
		case 1:
			delete(held.namespaces, ns)
			w.DeleteNamespace(ns)
		case 2:
			held.services[name] = serviceOf(name, []string{pick("None", "10.0.0.1", "10.0.0.2")}, "p:1:TCP")
			w.SetService(held.services[name])
		case 3:
			delete(held.services, name)
			w.DeleteService(ref)
		case 4:
			held.slices[name] = sliceOf(name, pick("x", "y", ""), []string{"p:1:TCP"}, pick("10.0.0.1", "10.0.0.2=h", "!10.0.0.3"), pick("10.0.0.1=h", "10.0.0.3"))
			w.SetSlice(held.slices[name])
		case 5:
			delete(held.slices, name)
			w.DeleteSlice(ref)
		case 6:
			held.pods[name] = podOf(name, pick("Running", "Failed"), pick("10.0.0.1", "10.0.0.2"))
			w.SetPod(held.pods[name])
		case 7:
			delete(held.pods, name)
			w.DeletePod(ref)
		}
		if random.IntN(3) > 0 {
			continue
		}
		v := w.Publish(int64(step))
		got := said(v)
		if want := said(anew()); !slices.Equal(got, want) {
			t.Fatalf("step %d:\n%s\nwant\n%s", step, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		before = append(before, earlier{v, got})
	}
	for _, e := range before {
		if !slices.Equal(said(e.view), e.said) {
			t.Fatalf("the View of %d changed", e.view.Revision())
		}
	}
}

// FuzzAnswer asks for any name: the answer is consistent in itself, whatever is asked.
func FuzzAnswer(f *testing.F) {
	v := sample().Publish(1)
	for _, name := range []string{"web.default.svc.cluster.local.", `a\.b.cluster.local.`, "1.1.244.10.in-addr.arpa.", ".", "", "..", "-.default.pod.cluster.local."} {
		f.Add(name, uint16(1))
	}
	f.Fuzz(func(t *testing.T, name string, kind uint16) {
		var a zone.Answer
		v.Answer(zone.Question{Name: name, Type: zone.Type(kind), Turn: uint32(kind)}, &a)
		if (a.Outcome == zone.Found) != (len(a.Records) > 0 && a.Next == "" && a.Outcome != zone.NoName && a.Outcome != zone.NoData) {
			t.Errorf("%q: outcome %d with %v", name, a.Outcome, a.Records)
		}
		if a.Reason.String() == "" {
			t.Errorf("%q: no reason", name)
		}
		for _, r := range append(a.Records, a.Authority...) {
			if !strings.HasSuffix(r.Name, ".") {
				t.Errorf("%q: owner %q", name, r.Name)
			}
		}
	})
}

package lb_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
)

// FuzzService: whatever a caller sends is completed without a panic, completing it again changes nothing, and what is
// accepted has only wants and rows that its readers take.
func FuzzService(f *testing.F) {
	for _, text := range []string{
		`ports: [{port: 80}]`, `{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]}`,
		`{clusterIP: None, selector: {a: b}}`, `{type: ExternalName, externalName: a.b}`,
		`{ipFamilyPolicy: RequireDualStack, clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: http}]}`,
	} {
		raw, err := proto.Marshal(spec(f, text).Spec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, raw)
	}
	f.Fuzz(func(t *testing.T, now, before []byte) {
		o := &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: "b"}, Spec: &objectv1.ServiceSpec{}}
		old := proto.Clone(o).(*objectv1.Service)
		if proto.Unmarshal(now, o.Spec) != nil || proto.Unmarshal(before, old.Spec) != nil {
			return
		}
		if len(complete(old, nil, both)) > 0 {
			old = nil
		}
		if len(complete(o, old, both)) > 0 {
			return
		}
		again := proto.Clone(o).(*objectv1.Service)
		if bad := complete(again, o, both); len(bad) > 0 || !proto.Equal(o, again) {
			t.Fatalf("%v\nbecomes %v\n%v", o, again, bad)
		}
		wants := lb.Wants(o, old)
		texts := make([]string, len(wants))
		for i, w := range wants {
			if texts[i] = w.Text; w.Text == "" {
				texts[i] = map[lb.Family]string{lb.IPv4: "10.96.0.9", lb.IPv6: "fd00:10:96::9", "": "30999"}[w.Family]
			}
		}
		lb.Grant(o, wants, texts)
		for _, w := range lb.Wants(o, o) {
			t.Errorf("still wants %+v", w)
		}
		world := lb.NewWorld()
		world.SetService(lb.ParseService(o))
		world.Plan(lb.Ref{Namespace: "a", Name: "b"})
	})
}

// FuzzSlice: whatever is stored as an EndpointSlice is read without a panic.
func FuzzSlice(f *testing.F) {
	f.Add([]byte("\x22\x04IPv4\x2a\x0b\x0a\x0910.0.0.1"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o := &objectv1.EndpointSlice{}
		if proto.Unmarshal(raw, o) != nil {
			return
		}
		lb.DefaultSlice(o)
		accepted := len(lb.ValidateSlice(o, nil)) == 0
		x := lb.ParseSlice(o)
		if accepted && x.Family != "" && len(x.Endpoints) != len(o.GetEndpoints()) {
			t.Errorf("accepted %d endpoints, read %d", len(o.GetEndpoints()), len(x.Endpoints))
		}
	})
}

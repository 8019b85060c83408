package app_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podwire.dev/internal/apptest"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/seal"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/app"
	"podwire.dev/services/ingress/internal/planner"
)

// place is a fake member: loopback, at once.
type place struct{ ready chan struct{} }

func (p *place) Await(context.Context) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}, nil
}

func (p *place) Ready() { close(p.ready) }

// stack is the service, with a place in the fabric.
type stack struct {
	*apptest.Stack
	running *app.Running
}

func newStack(t *testing.T) *stack {
	t.Helper()
	ring, err := seal.NewKeyring(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{Stack: apptest.New(t, app.Name, app.Kinds(), store.WithKeys(ring))}
	for _, ns := range []string{"default", "kube-system"} {
		s.Put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: ns}})
	}
	var cfg app.Config
	cfg.SetDefaults()
	cfg.IngressClass.Default, cfg.Limits.Drain = true, 0
	m := &place{ready: make(chan struct{})}
	s.Serve(func(r *service.Replica) (err error) {
		s.running, err = app.Serve(r, m, cfg, app.Ports{})
		return err
	})
	select {
	case <-m.ready:
	case <-s.Ctx.Done():
		t.Fatal("the member does not become ready")
	}
	return s
}

// service puts a Service with one endpoint.
func (s *stack) service(name string, at netip.AddrPort) store.Revision {
	s.T.Helper()
	s.Put(planner.KindService, &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name},
		Spec:     &objectv1.ServiceSpec{Ports: []*objectv1.ServicePort{{Name: "http", Port: 80}}},
	})
	return s.Put(planner.KindSlice, &objectv1.EndpointSlice{
		Metadata:    &objectv1.ObjectMeta{Namespace: "default", Name: name + "-1", Labels: map[string]string{"kubernetes.io/service-name": name}},
		AddressType: "IPv4", Ports: []*objectv1.EndpointPort{{Name: new("http"), Port: new(int32(at.Port()))}},
		Endpoints: []*objectv1.Endpoint{{Addresses: []string{at.Addr().String()}}},
	})
}

func backend(t *testing.T) netip.AddrPort {
	t.Helper()
	b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", r.Host, r.RequestURI) }))
	t.Cleanup(b.Close)
	return netip.MustParseAddrPort(b.Listener.Addr().String())
}

func ingressOf(t *testing.T, file string) *objectv1.Ingress {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Parse(kinds, file, strings.NewReader(string(text)), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if in, ok := o.Message.(*objectv1.Ingress); ok {
			return in
		}
	}
	t.Fatalf("%s has no Ingress", file)
	return nil
}

// get asks over HTTP at every address of the replica; the answers must agree.
func (s *stack) get(host, path string) (int, string) {
	s.T.Helper()
	plain, _, err := s.running.Addresses(s.Ctx)
	if err != nil || len(plain) != 2 {
		s.T.Fatalf("%v, %v", plain, err)
	}
	var answers []string
	var code int
	for _, at := range plain {
		r, err := http.NewRequestWithContext(s.Ctx, http.MethodGet, "http://"+at.String()+path, nil)
		if err != nil {
			s.T.Fatal(err)
		}
		if host != "" {
			r.Host = host
		}
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		if err != nil {
			s.T.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			s.T.Fatal(err)
		}
		code = resp.StatusCode
		answers = append(answers, fmt.Sprint(code, " ", strings.ReplaceAll(string(body), at.String(), "SELF")))
	}
	if answers[0] != answers[1] {
		s.T.Errorf("the addresses answer differently: %q", answers)
	}
	_, body, _ := strings.Cut(answers[0], " ")
	return code, body
}

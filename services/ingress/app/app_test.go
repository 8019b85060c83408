package app_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/store"
	"podwire.dev/internal/telemetry"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
	"podwire.dev/services/ingress/app"
	"podwire.dev/services/ingress/internal/admission"
	"podwire.dev/services/ingress/internal/planner"
)

// TestMinimalIngress applies the mission's manifest by gRPC and asks it over HTTP.
func TestMinimalIngress(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.Dial(pki.User("alice"))
	ingresses, routes := ingressv1.NewIngressServiceClient(user), ingressv1.NewRouteServiceClient(user)
	class, err := ingressv1.NewIngressClassServiceClient(user).Get(s.Ctx, &ingressv1.IngressClassServiceGetRequest{Name: "nginx-example"}, grpc.WaitForReady(true))
	if err != nil || class.GetObject().GetSpec().GetController() != "podwire.dev/ingress" {
		t.Fatalf("the class that is founded: %v, %v", class, err)
	}
	applied, err := ingresses.Apply(s.Ctx, &ingressv1.IngressServiceApplyRequest{Object: ingressOf(t, "minimal-ingress.yaml")})
	if err != nil {
		t.Fatal(err)
	}
	s.Passed(store.Revision(applied.GetRevision()))
	if code, body := s.get("", "/testpath"); code != 503 || !strings.Contains(body, "NoEndpoints") {
		t.Errorf("without its Service: %d %s", code, body)
	}
	at := backend(t)
	s.Passed(s.service("test", at))
	if code, body := s.get("", "/testpath/deeper?q=1"); code != 200 || body != "SELF /?q=1" {
		t.Errorf("%d %s", code, body)
	}
	if code, body := s.get("any.example", "/testpathology"); code != 404 || !strings.HasPrefix(body, "404 Not Found\nNoRoute: ") {
		t.Errorf("%d %s", code, body)
	}
	match, err := routes.Match(s.Ctx, &ingressv1.MatchRequest{Host: "any.example", Path: "/testpath/foo"})
	if err != nil {
		t.Fatal(err)
	}
	if match.GetMatch() != ingressv1.MatchResponse_MATCH_RULE || match.GetIngress() != "default/minimal-ingress" ||
		match.GetRule() != "spec.rules[0].http.paths[0]" || match.GetService() != "default/test" || match.GetPort() != "80" ||
		!slices.Equal(match.GetEndpoints(), []string{at.String()}) || match.GetBackendPath() != "/" || match.GetStatus() != 0 ||
		match.GetRevision() < applied.GetRevision() {
		t.Errorf("match: %v", match)
	}
	if match, err = routes.Match(s.Ctx, &ingressv1.MatchRequest{Path: "/other"}); err != nil || match.GetStatus() != 404 || match.GetMatch() != ingressv1.MatchResponse_MATCH_NONE {
		t.Errorf("match of nothing: %v, %v", match, err)
	}
	if _, err = routes.Match(s.Ctx, &ingressv1.MatchRequest{Path: "/a/../.."}); !errs.Is(err, errs.Invalid) {
		t.Errorf("match of an impossible path: %v", err)
	}
	if _, err = ingressv1.NewRouteServiceClient(s.Dial(pki.Node("node-1"))).Match(s.Ctx, &ingressv1.MatchRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node asks for routes: %v", err)
	}
}

// TestStatus follows the Service that exposes the ingress.
func TestStatus(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingresses := ingressv1.NewIngressServiceClient(s.Dial(pki.User("alice")))
	if _, err := ingresses.Apply(s.Ctx, &ingressv1.IngressServiceApplyRequest{Object: ingressOf(t, "minimal-ingress.yaml")}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	foreign := ingressOf(t, "minimal-ingress.yaml")
	foreign.Metadata.Name, foreign.Spec.IngressClassName = "foreign", new("somebody-elses")
	if _, err := ingresses.Apply(s.Ctx, &ingressv1.IngressServiceApplyRequest{Object: foreign}); err != nil {
		t.Fatal(err)
	}
	exposed := func(ips ...string) store.Revision {
		o := &objectv1.Service{
			Metadata: &objectv1.ObjectMeta{Namespace: "kube-system", Name: "podwire-ingress"},
			Status:   &objectv1.ServiceStatus{LoadBalancer: &objectv1.LoadBalancerStatus{}},
		}
		for _, ip := range ips {
			o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, &objectv1.LoadBalancerIngress{Ip: ip, IpMode: new("VIP")})
		}
		return s.Put(planner.KindService, o)
	}
	addresses := func(name string) string {
		t.Helper()
		got, err := ingresses.Get(s.Ctx, &ingressv1.IngressServiceGetRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		var ips []string
		for _, in := range got.GetObject().GetStatus().GetLoadBalancer().GetIngress() {
			ips = append(ips, in.GetIp())
		}
		return strings.Join(ips, " ")
	}
	// The watermark passes a revision only when what is derived from it is written.
	for _, want := range []string{"192.0.2.10 2001:db8::10", "192.0.2.11", ""} {
		s.Passed(exposed(strings.Fields(want)...))
		if got := addresses("minimal-ingress"); got != want {
			t.Errorf("status is %q, want %q", got, want)
		}
		if got := addresses("foreign"); got != "" {
			t.Errorf("another class' Ingress has the status %q", got)
		}
	}
	rev := exposed("192.0.2.12")
	s.Passed(rev)
	rec, _, err := s.Fake.Get(s.Ctx, store.Key{Kind: admission.KindIngress, Namespace: "default", Name: "minimal-ingress"})
	if err != nil || rec.Cause.Revision != rev {
		t.Errorf("the status is written because of %d (%v), want %d", rec.Cause.Revision, err, rev)
	}
}

// TestTrace finds the hop of a change in the service that planned it.
func TestTrace(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.Dial(pki.User("alice"))
	applied, err := ingressv1.NewIngressServiceClient(user).Apply(s.Ctx, &ingressv1.IngressServiceApplyRequest{Object: ingressOf(t, "minimal-ingress.yaml")}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	s.Passed(store.Revision(applied.GetRevision()))
	got, err := ingressv1.NewIngressServiceClient(user).Get(s.Ctx, &ingressv1.IngressServiceGetRequest{Name: "minimal-ingress"})
	if err != nil {
		t.Fatal(err)
	}
	parent, ok := telemetry.ParseTraceparent(got.GetTraceparent())
	if !ok {
		t.Fatalf("traceparent %q", got.GetTraceparent())
	}
	hops, err := tracev1.NewTraceServiceClient(user).GetHops(s.Ctx, &tracev1.GetHopsRequest{TraceId: parent.TraceID().String()})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(hops.GetHops(), func(h *tracev1.Hop) bool { return h.GetName() == "plan" && strings.HasPrefix(h.GetProcess(), app.Name) }) {
		t.Errorf("no hop says that ingress planned it: %v", hops)
	}
}

// TestRoutesFollowTheStore runs changes of a Service's endpoint past requests that go on all the while.
func TestRoutesFollowTheStore(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.Dial(pki.User("alice"))
	if _, err := ingressv1.NewIngressServiceClient(user).Apply(s.Ctx, &ingressv1.IngressServiceApplyRequest{Object: ingressOf(t, "minimal-ingress.yaml")}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	s.Passed(s.service("test", backend(t)))
	plain, _, err := s.running.Addresses(s.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := c.Get("http://" + plain[0].String() + "/testpath")
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
					t.Errorf("%s, %v", resp.Status, err)
				}
				resp.Body.Close()
			}
		})
	}
	for range 10 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		next := &http.Server{Handler: http.NotFoundHandler()}
		next.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "new") })
		var serving sync.WaitGroup
		serving.Go(func() { _ = next.Serve(l) })
		t.Cleanup(func() {
			_ = next.Close()
			serving.Wait()
		})
		s.Passed(s.service("test", netip.MustParseAddrPort(l.Addr().String())))
	}
	close(stop)
	asking.Wait()
}

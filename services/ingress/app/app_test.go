package app_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/seal"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/telemetry"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
	"podwire.dev/services/ingress/app"
	"podwire.dev/services/ingress/internal/admission"
	"podwire.dev/services/ingress/internal/planner"
)

// patience bounds what has to happen, so that what never does fails.
const patience = 30 * time.Second

// place is a fake member: loopback, at once.
type place struct{ ready chan struct{} }

func (p *place) Await(context.Context) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}, nil
}

func (p *place) Ready() { close(p.ready) }

// stack is the service on a store in memory, behind mutual TLS on loopback.
type stack struct {
	t       *testing.T
	ctx     context.Context
	fake    *storefake.Fake
	ca      *pki.Authority
	addr    string
	running *app.Running
}

func newStack(t *testing.T) *stack {
	t.Helper()
	dir := t.TempDir()
	if _, err := pki.Init(dir, pki.Plan{Services: []string{app.Name}}); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.NewKeyring(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s := &stack{t: t, ctx: ctx, fake: storefake.New(app.Kinds(), store.WithKeys(ring)), ca: ca}
	for _, ns := range []string{"default", "kube-system"} {
		s.put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: ns}})
	}
	s.serve()
	return s
}

func (s *stack) creds(id pki.Identity) *rpc.Credentials {
	s.t.Helper()
	dir := s.t.TempDir()
	dns, _ := pki.ServerNames(id)
	csr, key, err := pki.NewRequest()
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := s.ca.Sign(csr, id, dns, nil, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := pki.WriteIdentity(dir, s.ca.CAPEM(), cert, key); err != nil {
		s.t.Fatal(err)
	}
	creds, err := rpc.LoadCredentials(dir, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return creds
}

func (s *stack) serve() {
	s.t.Helper()
	tele, err := telemetry.New(s.ctx, telemetry.Process{Service: app.Name})
	if err != nil {
		s.t.Fatal(err)
	}
	d := daemon.New(daemon.Options{Name: app.Name, Log: slog.New(slog.DiscardHandler), Telemetry: tele})
	server, err := rpc.NewServer(rpc.OptionsFor(d, daemon.Common{Listen: "127.0.0.1:0"}, s.creds(pki.Service(app.Name))))
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = server.Addr().String()
	var cfg app.Config
	cfg.SetDefaults()
	cfg.IngressClass.Default, cfg.Limits.Drain = true, 0
	m := &place{ready: make(chan struct{})}
	ended, wired := make(chan error, 1), make(chan error, 1)
	go func() {
		ended <- d.Run(s.ctx, func(context.Context) (err error) {
			s.running, err = app.Serve(d, s.fake.Store, server, store.Replica{Service: app.Name, Name: s.addr, Address: s.addr}, m, cfg, app.Ports{})
			wired <- err
			return err
		})
	}()
	if err := <-wired; err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		d.Stop()
		if err := <-ended; err != nil {
			s.t.Errorf("the service ended with: %v", err)
		}
	})
	select {
	case <-m.ready:
	case <-s.ctx.Done():
		s.t.Fatal("the member does not become ready")
	}
}

func (s *stack) dial(id pki.Identity) *grpc.ClientConn {
	s.t.Helper()
	conn, err := rpc.Dial("passthrough:///"+s.addr, pki.Service(app.Name), s.creds(id))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *stack) put(kind string, o store.Object) store.Revision {
	s.t.Helper()
	tx := s.fake.Txn()
	if rec, _, err := s.fake.Get(s.ctx, store.KeyOf(kind, o)); err == nil {
		tx.Update(rec, o)
	} else {
		tx.Create(o, kind)
	}
	rev, err := tx.Commit(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return rev
}

// passed waits for the service's watermark: from then on requests are judged by that revision.
func (s *stack) passed(at store.Revision) {
	s.t.Helper()
	for list, err := range s.fake.WatchWatermarks(s.ctx) {
		if err != nil {
			s.t.Fatalf("the watermark does not pass %d: %v", at, err)
		}
		if len(list) == 1 && list[0].Service == app.Name && list[0].Revision >= at {
			return
		}
	}
	s.t.Fatalf("the watermark does not pass %d", at)
}

// service puts a Service with one endpoint.
func (s *stack) service(name string, at netip.AddrPort) store.Revision {
	s.t.Helper()
	s.put(planner.KindService, &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name},
		Spec:     &objectv1.ServiceSpec{Ports: []*objectv1.ServicePort{{Name: "http", Port: 80}}},
	})
	return s.put(planner.KindSlice, &objectv1.EndpointSlice{
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
	s.t.Helper()
	plain, _, err := s.running.Addresses(s.ctx)
	if err != nil || len(plain) != 2 {
		s.t.Fatalf("%v, %v", plain, err)
	}
	var answers []string
	var code int
	for _, at := range plain {
		r, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://"+at.String()+path, nil)
		if err != nil {
			s.t.Fatal(err)
		}
		if host != "" {
			r.Host = host
		}
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		if err != nil {
			s.t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			s.t.Fatal(err)
		}
		code = resp.StatusCode
		answers = append(answers, fmt.Sprint(code, " ", strings.ReplaceAll(string(body), at.String(), "SELF")))
	}
	if answers[0] != answers[1] {
		s.t.Errorf("the addresses answer differently: %q", answers)
	}
	_, body, _ := strings.Cut(answers[0], " ")
	return code, body
}

// TestMinimalIngress applies the mission's manifest by gRPC and asks it over HTTP.
func TestMinimalIngress(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.dial(pki.User("alice"))
	ingresses, routes := ingressv1.NewIngressServiceClient(user), ingressv1.NewRouteServiceClient(user)
	class, err := ingressv1.NewIngressClassServiceClient(user).Get(s.ctx, &ingressv1.IngressClassServiceGetRequest{Name: "nginx-example"}, grpc.WaitForReady(true))
	if err != nil || class.GetObject().GetSpec().GetController() != "podwire.dev/ingress" {
		t.Fatalf("the class that is founded: %v, %v", class, err)
	}
	applied, err := ingresses.Apply(s.ctx, &ingressv1.IngressServiceApplyRequest{Object: ingressOf(t, "minimal-ingress.yaml")})
	if err != nil {
		t.Fatal(err)
	}
	s.passed(store.Revision(applied.GetRevision()))
	if code, body := s.get("", "/testpath"); code != 503 || !strings.Contains(body, "NoEndpoints") {
		t.Errorf("without its Service: %d %s", code, body)
	}
	at := backend(t)
	s.passed(s.service("test", at))
	if code, body := s.get("", "/testpath/deeper?q=1"); code != 200 || body != "SELF /?q=1" {
		t.Errorf("%d %s", code, body)
	}
	if code, body := s.get("any.example", "/testpathology"); code != 404 || !strings.HasPrefix(body, "404 Not Found\nNoRoute: ") {
		t.Errorf("%d %s", code, body)
	}
	match, err := routes.Match(s.ctx, &ingressv1.MatchRequest{Host: "any.example", Path: "/testpath/foo"})
	if err != nil {
		t.Fatal(err)
	}
	if match.GetMatch() != ingressv1.MatchResponse_MATCH_RULE || match.GetIngress() != "default/minimal-ingress" ||
		match.GetRule() != "spec.rules[0].http.paths[0]" || match.GetService() != "default/test" || match.GetPort() != "80" ||
		!slices.Equal(match.GetEndpoints(), []string{at.String()}) || match.GetBackendPath() != "/" || match.GetStatus() != 0 ||
		match.GetRevision() < applied.GetRevision() {
		t.Errorf("match: %v", match)
	}
	if match, err = routes.Match(s.ctx, &ingressv1.MatchRequest{Path: "/other"}); err != nil || match.GetStatus() != 404 || match.GetMatch() != ingressv1.MatchResponse_MATCH_NONE {
		t.Errorf("match of nothing: %v, %v", match, err)
	}
	if _, err = routes.Match(s.ctx, &ingressv1.MatchRequest{Path: "/a/../.."}); !errs.Is(err, errs.Invalid) {
		t.Errorf("match of an impossible path: %v", err)
	}
	if _, err = ingressv1.NewRouteServiceClient(s.dial(pki.Node("node-1"))).Match(s.ctx, &ingressv1.MatchRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node asks for routes: %v", err)
	}
}

// TestStatus follows the Service that exposes the ingress.
func TestStatus(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingresses := ingressv1.NewIngressServiceClient(s.dial(pki.User("alice")))
	if _, err := ingresses.Apply(s.ctx, &ingressv1.IngressServiceApplyRequest{Object: ingressOf(t, "minimal-ingress.yaml")}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	foreign := ingressOf(t, "minimal-ingress.yaml")
	foreign.Metadata.Name, foreign.Spec.IngressClassName = "foreign", new("somebody-elses")
	if _, err := ingresses.Apply(s.ctx, &ingressv1.IngressServiceApplyRequest{Object: foreign}); err != nil {
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
		return s.put(planner.KindService, o)
	}
	addresses := func(name string) string {
		t.Helper()
		got, err := ingresses.Get(s.ctx, &ingressv1.IngressServiceGetRequest{Name: name})
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
		s.passed(exposed(strings.Fields(want)...))
		if got := addresses("minimal-ingress"); got != want {
			t.Errorf("status is %q, want %q", got, want)
		}
		if got := addresses("foreign"); got != "" {
			t.Errorf("another class' Ingress has the status %q", got)
		}
	}
	rev := exposed("192.0.2.12")
	s.passed(rev)
	rec, _, err := s.fake.Get(s.ctx, store.Key{Kind: admission.KindIngress, Namespace: "default", Name: "minimal-ingress"})
	if err != nil || rec.Cause.Revision != rev {
		t.Errorf("the status is written because of %d (%v), want %d", rec.Cause.Revision, err, rev)
	}
}

// TestNamespaceEnds finds Ingresses and Secrets deleted when their Namespace is Terminating.
func TestNamespaceEnds(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief"}})
	user := s.dial(pki.User("alice"))
	ingresses, secrets := ingressv1.NewIngressServiceClient(user), ingressv1.NewSecretServiceClient(user)
	for _, ns := range []string{"brief", "default"} {
		in := ingressOf(t, "minimal-ingress.yaml")
		in.Metadata.Namespace = ns
		if _, err := ingresses.Apply(s.ctx, &ingressv1.IngressServiceApplyRequest{Object: in}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
		if _, err := secrets.Apply(s.ctx, &ingressv1.SecretServiceApplyRequest{Object: &objectv1.Secret{
			Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: "s"}, Data: map[string][]byte{"k": []byte("v")},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	s.passed(s.put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief", DeletionTimestamp: timestamppb.Now()}}))
	for ns, want := range map[string]codes.Code{"brief": codes.NotFound, "default": codes.OK} {
		if _, err := ingresses.Get(s.ctx, &ingressv1.IngressServiceGetRequest{Namespace: ns, Name: "minimal-ingress"}); status.Code(err) != want {
			t.Errorf("%s: the Ingress: %v, want %s", ns, err, want)
		}
		if _, err := secrets.Get(s.ctx, &ingressv1.SecretServiceGetRequest{Namespace: ns, Name: "s"}); status.Code(err) != want {
			t.Errorf("%s: the Secret: %v, want %s", ns, err, want)
		}
	}
}

// TestSecretsThatDoNotOpenEndWithTheirNamespace: nobody sees them, and still they do not stay.
func TestSecretsThatDoNotOpenEndWithTheirNamespace(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ring, err := seal.NewKeyring(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	lost := s.fake.Another(app.Kinds(), store.WithKeys(ring))
	for _, ns := range []string{"brief", "default"} {
		s.put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: ns}})
		o := &objectv1.Secret{Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: "s"}, Data: map[string][]byte{"k": []byte("v")}}
		if _, err := lost.Txn().Create(o, store.SecretKind).Commit(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	at := s.put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief", DeletionTimestamp: timestamppb.Now()}})
	for batch, err := range lost.Watch(s.ctx, store.WatchQuery{From: at, Kind: store.SecretKind}) {
		if err != nil {
			t.Fatalf("the Secret stays: %v", err)
		}
		if len(batch.Events) == 0 {
			continue
		}
		gone := batch.Events[0]
		if gone.Type != store.Deleted || gone.Key.Namespace != "brief" || gone.Cause.Revision != at {
			t.Errorf("%+v", gone)
		}
		break
	}
	if _, _, err := lost.Get(s.ctx, store.Key{Kind: store.SecretKind, Namespace: "default", Name: "s"}); err != nil {
		t.Errorf("the Secret of a Namespace that stays: %v", err)
	}
}

// keyPair makes what a TLS Secret holds.
func keyPair(t *testing.T, host string, serial int64) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// TestCertificates shows the certificate of a Secret, its successor, and the server's own where there is none.
func TestCertificates(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.dial(pki.User("alice"))
	secrets, routes := ingressv1.NewSecretServiceClient(user), ingressv1.NewRouteServiceClient(user)
	in := ingressOf(t, "tls-ingress.yaml")
	applied, err := ingressv1.NewIngressServiceClient(user).Apply(s.ctx, &ingressv1.IngressServiceApplyRequest{Object: in}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if got := applied.GetObject().GetSpec().GetIngressClassName(); got != "nginx-example" {
		t.Errorf("the default class is not filled in: %q", got)
	}
	_, https, err := s.running.Addresses(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	serial := func(at store.Revision) int64 {
		t.Helper()
		s.passed(at)
		c, err := tls.Dial("tcp", https[0].String(), &tls.Config{ServerName: "https-example.foo.com", InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		leaf := c.ConnectionState().PeerCertificates[0]
		if !leaf.SerialNumber.IsInt64() {
			return 0
		}
		return leaf.SerialNumber.Int64()
	}
	if got := serial(store.Revision(applied.GetRevision())); got != 0 {
		t.Errorf("without the Secret the certificate is %d", got)
	}
	for _, n := range []int64{7, 8} {
		cert, key := keyPair(t, "https-example.foo.com", n)
		got, err := secrets.Apply(s.ctx, &ingressv1.SecretServiceApplyRequest{Object: &objectv1.Secret{
			Metadata: &objectv1.ObjectMeta{Name: "testsecret-tls"}, Type: "kubernetes.io/tls",
			Data: map[string][]byte{"tls.crt": cert, "tls.key": key},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if got := serial(store.Revision(got.GetRevision())); got != n {
			t.Errorf("the certificate is %d, want %d", got, n)
		}
	}
	match, err := routes.Match(s.ctx, &ingressv1.MatchRequest{Host: "https-example.foo.com", Tls: true})
	if err != nil || match.GetCertificate() != "default/testsecret-tls" {
		t.Errorf("match: %v, %v", match, err)
	}
	if match, err = routes.Match(s.ctx, &ingressv1.MatchRequest{Host: "https-example.foo.com"}); err != nil || match.GetStatus() != 308 {
		t.Errorf("match without TLS: %v, %v", match, err)
	}
}

// TestTrace finds the hop of a change in the service that planned it.
func TestTrace(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.dial(pki.User("alice"))
	applied, err := ingressv1.NewIngressServiceClient(user).Apply(s.ctx, &ingressv1.IngressServiceApplyRequest{Object: ingressOf(t, "minimal-ingress.yaml")}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	s.passed(store.Revision(applied.GetRevision()))
	got, err := ingressv1.NewIngressServiceClient(user).Get(s.ctx, &ingressv1.IngressServiceGetRequest{Name: "minimal-ingress"})
	if err != nil {
		t.Fatal(err)
	}
	parent, ok := telemetry.ParseTraceparent(got.GetTraceparent())
	if !ok {
		t.Fatalf("traceparent %q", got.GetTraceparent())
	}
	hops, err := tracev1.NewTraceServiceClient(user).GetHops(s.ctx, &tracev1.GetHopsRequest{TraceId: parent.TraceID().String()})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(hops.GetHops(), func(h *tracev1.Hop) bool { return h.GetName() == "plan" && strings.HasPrefix(h.GetProcess(), app.Name) }) {
		t.Errorf("no hop says that ingress planned it: %v", hops)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	load := func(text string) []string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "ingress.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := daemon.Load[app.Config](path)
		var fields []string
		for _, v := range errs.ViolationsOf(err) {
			fields = append(fields, v.Field)
		}
		if err != nil && len(fields) == 0 {
			t.Fatal(err)
		}
		return fields
	}
	common := "listen: :7443\nidentity: /etc/podwire\netcd: {endpoints: ['https://etcd:2379']}\n"
	good := common + "peers: {cluster: 'dns:///cluster:7443', ipam: 'dns:///ipam:7443'}\nsecretsKey: /etc/podwire/secrets.key\n" +
		"member: {name: ingress-1, underlay: [192.0.2.1]}\nlimits: {connections: 10, idleTimeout: 1m}\ntrustedProxies: [10.0.0.0/8]\n"
	if got := load(good); got != nil {
		t.Errorf("a good file: %v", got)
	}
	bad := common + "ingressClass: {name: '', default: true}\nmember: {name: dns-1}\nlimits: {connections: 0, drain: 1m}\ntrustedProxies: [10.0.0.1/8]\n"
	want := []string{"trustedProxies[0]", "peers.cluster", "peers.ipam", "secretsKey", "ingressClass.default", "limits.connections", "limits.drain", "member.name"}
	if got := load(bad); !slices.Equal(got, want) {
		t.Errorf("a bad file: %v, want %v", got, want)
	}
}

// TestRoutesFollowTheStore runs changes of a Service's endpoint past requests that go on all the while.
func TestRoutesFollowTheStore(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.dial(pki.User("alice"))
	if _, err := ingressv1.NewIngressServiceClient(user).Apply(s.ctx, &ingressv1.IngressServiceApplyRequest{Object: ingressOf(t, "minimal-ingress.yaml")}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	s.passed(s.service("test", backend(t)))
	plain, _, err := s.running.Addresses(s.ctx)
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
		s.passed(s.service("test", netip.MustParseAddrPort(l.Addr().String())))
	}
	close(stop)
	asking.Wait()
}

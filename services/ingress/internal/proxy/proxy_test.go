package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/proxy"
	"podwire.dev/services/ingress/internal/route"
)

// patience bounds what has to happen, so that what never does fails.
const patience = 30 * time.Second

// site is a Front on loopback, with a World to change.
type site struct {
	t     testing.TB
	front *proxy.Front
	http  string // address
	https string

	mu    sync.Mutex
	world *route.World
	certs map[route.Ref]*tls.Certificate
	pool  *x509.CertPool
}

func limits() proxy.Limits {
	l := proxy.DefaultLimits()
	l.Drain = 0
	return l
}

func newSite(t testing.TB, o proxy.Options) *site {
	t.Helper()
	front, err := proxy.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, front: front, world: route.NewWorld(), certs: map[route.Ref]*tls.Certificate{}, pool: x509.NewCertPool()}
	s.world.SetClass(route.Class{Name: "ours", Controller: route.Controller})
	var running sync.WaitGroup
	for _, port := range []struct {
		serve   func(net.Listener) error
		address *string
	}{{front.Serve, &s.http}, {front.ServeTLS, &s.https}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		*port.address = l.Addr().String()
		running.Go(func() {
			if err := port.serve(l); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := front.Stop(ctx); err != nil {
			t.Error(err)
		}
		running.Wait()
	})
	return s
}

// change changes the World and publishes it.
func (s *site) change(fn func(w *route.World)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s.world)
	certs := map[route.Ref]*tls.Certificate{}
	for ref, c := range s.certs {
		certs[ref] = c
	}
	s.front.Publish(proxy.Snapshot{Table: s.world.Table(), Certificates: certs})
}

// ingress is one Ingress with one rule for Service web, port 80.
func ingress(name, host, path string, annotations map[string]string) route.Ingress {
	class, kind := "ours", "Prefix"
	nginx := map[string]string{}
	for k, v := range annotations {
		nginx["nginx.ingress.kubernetes.io/"+k] = v
	}
	return route.ParseIngress(&objectv1.Ingress{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name, Annotations: nginx},
		Spec: &objectv1.IngressSpec{
			IngressClassName: &class,
			Rules: []*objectv1.IngressRule{{Host: host, Http: &objectv1.HTTPIngressRuleValue{Paths: []*objectv1.HTTPIngressPath{{
				Path: path, PathType: &kind, Backend: &objectv1.IngressBackend{Service: &objectv1.IngressServiceBackend{
					Name: "web", Port: &objectv1.ServiceBackendPort{Number: 80},
				}},
			}}}}},
		},
	})
}

func web(w *route.World) {
	w.SetService(route.Service{Ref: route.Ref{Namespace: "default", Name: "web"}, Ports: []route.ServicePort{{Number: 80}}})
}

// endpoints makes addresses the endpoints of web; each has a slice of its own, as ports differ.
func endpoints(w *route.World, slots int, addresses ...string) {
	for i := range max(slots, len(addresses)) {
		ref := route.Ref{Namespace: "default", Name: fmt.Sprint("web-", i)}
		if i >= len(addresses) {
			w.DeleteSlice(ref)
			continue
		}
		at := netip.MustParseAddrPort(addresses[i])
		w.SetSlice(route.Slice{
			Ref: ref, Service: "web", Ports: []route.SlicePort{{Number: at.Port()}},
			Endpoints: []route.Endpoint{{Address: at.Addr(), Ready: true}},
		})
	}
}

// backend is an HTTP server that ends with the test.
func backend(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func addressOf(s *httptest.Server) string { return s.Listener.Addr().String() }

// serves routes everything to a handler.
func (s *site) serves(h http.HandlerFunc, annotations map[string]string) {
	b := backend(s.t, h)
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 1, addressOf(b))
		w.SetIngress(ingress("all", "", "/", annotations))
	})
}

func client(t testing.TB) *http.Client {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

type response struct {
	status int
	body   string
	header http.Header
	proto  string
}

func do(t testing.TB, c *http.Client, method, url, body string, header ...string) response {
	t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, in)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return response{resp.StatusCode, string(data), resp.Header, resp.Proto}
}

// certificate makes one for a host, which the site's clients trust.
func (s *site) certificate(host string, serial int64) *tls.Certificate {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	s.pool.AddCert(leaf)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// secureClient speaks HTTP/2 over TLS with the site, whatever the host.
func (s *site) secureClient(protocols ...string) *http.Client {
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: s.pool, NextProtos: protocols},
		ForceAttemptHTTP2: len(protocols) == 0,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.https)
		},
	}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func dialTLS(t testing.TB, address string, config *tls.Config) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

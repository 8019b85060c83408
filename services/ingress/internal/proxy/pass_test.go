package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"podwire.dev/services/ingress/internal/proxy"
	"podwire.dev/services/ingress/internal/route"
)

// mirror answers with what it was asked.
func mirror(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	fmt.Fprintf(w, "%s %s %s host=%s body=%s\n", r.Method, r.RequestURI, r.Proto, r.Host, body)
	for _, name := range []string{
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Real-Ip", "Forwarded",
		"X_forwarded_for", "Connection", "X-Hop", "Proxy", "X-Kept",
	} {
		if v, ok := r.Header[http.CanonicalHeaderKey(name)]; ok {
			fmt.Fprintf(w, "%s: %s\n", name, strings.Join(v, " | "))
		}
	}
}

func TestWhatTheEndpointGets(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(mirror, nil)
	_, port, _ := net.SplitHostPort(s.http)
	got := do(t, client(t), "POST", "http://"+s.http+"/a//b%2Fc?x=1;y=2&z=%zz", "hello",
		"Host", "foo.example", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "evil", "X-Real-IP", "6.6.6.6",
		"Forwarded", "for=6.6.6.6", "X_Forwarded_For", "6.6.6.6", "Connection", "X-Hop", "X-Hop", "1", "Proxy", "evil", "X-Kept", "yes")
	want := "POST /a//b%2Fc?x=1;y=2&z=%zz HTTP/1.1 host=foo.example body=hello\n" +
		"X-Forwarded-For: 127.0.0.1\nX-Forwarded-Proto: http\nX-Forwarded-Host: foo.example\nX-Forwarded-Port: " + port +
		"\nX-Real-Ip: 127.0.0.1\nX-Kept: yes\n"
	if got.status != 200 || got.body != want {
		t.Errorf("got %d\n%s\nwant\n%s", got.status, got.body, want)
	}
}

func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits(), Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}})
	s.serves(mirror, map[string]string{"whitelist-source-range": "192.0.2.0/24"})
	url := "http://" + s.http + "/"
	got := do(t, client(t), "GET", url, "", "X-Forwarded-For", "198.51.100.1, 192.0.2.7", "X-Forwarded-For", "10.1.1.1", "X-Forwarded-Proto", "https")
	for _, line := range []string{"X-Forwarded-For: 198.51.100.1, 192.0.2.7, 10.1.1.1, 127.0.0.1\n", "X-Real-Ip: 192.0.2.7\n", "X-Forwarded-Proto: https\n"} {
		if !strings.Contains(got.body, line) {
			t.Errorf("lacks %q: %d %s", line, got.status, got.body)
		}
	}
	if got := do(t, client(t), "GET", url, "", "X-Forwarded-For", "192.0.2.7, 198.51.100.1"); got.status != 403 || !strings.HasPrefix(got.body, "403 Forbidden\nClientNotAllowed: ") {
		t.Errorf("another client: %d %s", got.status, got.body)
	}
}

func TestRewrittenPath(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	b := backend(t, mirror)
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 1, addressOf(b))
		w.SetIngress(ingress("minimal", "", "/testpath", map[string]string{"rewrite-target": "/", "x-forwarded-prefix": "/testpath"}))
		w.SetIngress(ingress("groups", "", "/api(/|$)(.*)", map[string]string{"rewrite-target": "/v2/$2"}))
	})
	for path, want := range map[string]string{
		"/testpath":          "GET / ",
		"/testpath/foo?q=1":  "GET /?q=1 ",
		"/testpathological":  "404 Not Found\nNoRoute",
		"/api":               "GET /v2/ ",
		"/API/a/b%2Fc?x":     "GET /v2/a/b%2Fc?x ",
		"/api/a%20b/../c%3F": "GET /v2/c%3F ",
		"/testpath/../api/x": "GET /v2/x ",
		"/..":                "400 Bad Request\nBadPath",
		"/api%2F..%2Fx":      "400 Bad Request\nBadPath",
		"/testpath%2Fx":      "400 Bad Request\nAmbiguousPath",
	} {
		// Another client would clean the path.
		got := raw(t, s.http, "GET "+path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if _, body, _ := strings.Cut(got, "\r\n\r\n"); !strings.HasPrefix(body, want) {
			t.Errorf("%s: %q, want %q", path, body, want)
		}
	}
}

// raw sends bytes and reads to the end.
func raw(t testing.TB, address, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return exchange(t, c, text)
}

func exchange(t testing.TB, c net.Conn, text string) string {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(c)
	if err != nil && len(data) == 0 {
		t.Fatal(err)
	}
	return string(data)
}

func TestTLSByServerName(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	b := backend(t, mirror)
	a, wild := s.certificate("a.example", 1), s.certificate("*.wild.example", 2)
	s.certs[route.Ref{Namespace: "default", Name: "a"}] = a
	s.certs[route.Ref{Namespace: "default", Name: "wild"}] = wild
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 1, addressOf(b))
		in := ingress("a", "a.example", "/", nil)
		in.TLS = []route.TLS{{Field: "spec.tls[0]", Hosts: []string{"a.example"}, Secret: "a"}, {Field: "spec.tls[1]", Hosts: []string{"*.wild.example"}, Secret: "wild"}}
		w.SetIngress(in)
		w.SetIngress(ingress("w", "*.wild.example", "/", nil))
		w.SetSecret(route.Secret{Ref: route.Ref{Namespace: "default", Name: "a"}})
		w.SetSecret(route.Secret{Ref: route.Ref{Namespace: "default", Name: "wild"}})
	})
	for _, protocols := range [][]string{nil, {"http/1.1"}} {
		c := s.secureClient(protocols...)
		for _, host := range []string{"a.example", "x.wild.example"} {
			got := do(t, c, "GET", "https://"+host+"/p", "")
			want := "HTTP/2.0"
			if protocols != nil {
				want = "HTTP/1.1"
			}
			if got.status != 200 || got.proto != want || !strings.Contains(got.body, "X-Forwarded-Proto: https\n") {
				t.Errorf("%s: %d %s %s", host, got.status, got.proto, got.body)
			}
		}
	}
	if got := do(t, client(t), "GET", "http://"+s.http+"/p?q", "", "Host", "a.example:8080"); got.status != 308 || got.header.Get("Location") != "https://a.example/p?q" {
		t.Errorf("plain: %d %v", got.status, got.header)
	}
	unknown, err := tls.Dial("tcp", s.https, &tls.Config{ServerName: "b.example", InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer unknown.Close()
	if name := unknown.ConnectionState().PeerCertificates[0].Subject.CommonName; name != proxy.SelfSignedName {
		t.Errorf("an unknown host is shown the certificate of %q", name)
	}
	if got := exchange(t, unknown, "GET / HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 404 ") {
		t.Errorf("an unknown host: %q", got)
	}
	if _, err := tls.Dial("tcp", s.https, &tls.Config{ServerName: "a.example", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10, RootCAs: s.pool}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
}

func TestPriorKnowledge(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(mirror, nil)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	t.Cleanup(tr.CloseIdleConnections)
	if got := do(t, &http.Client{Transport: tr, Timeout: patience}, "POST", "http://"+s.http+"/x", "body"); got.proto != "HTTP/2.0" || !strings.Contains(got.body, "POST /x HTTP/1.1") {
		t.Errorf("%+v", got)
	}
}

// TestUpgrade speaks another protocol through the front, as WebSocket does.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" || r.URL.Path == "/no" {
			fmt.Fprint(w, "no upgrade")
			return
		}
		c, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
		for {
			line, err := buf.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(c, strings.ToUpper(line))
		}
	}, nil)
	c, err := net.Dial("tcp", s.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Connection") != "Upgrade" {
		t.Fatalf("%v %v", resp, err)
	}
	for _, word := range []string{"hello\n", "GET / HTTP/1.1\n", " folded\n"} {
		fmt.Fprint(c, word)
		if got, err := in.ReadString('\n'); err != nil || got != strings.ToUpper(word) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	got := raw(t, s.http, "GET /no HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || !strings.Contains(got, "Connection: close\r\n") {
		t.Errorf("an upgrade that is not taken: %q", got)
	}
}

// TestTrailers passes trailers both ways, and interim responses.
func TestTrailers(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%s %s", data, r.Trailer.Get("X-Check"))
		w.Header().Set("X-Sum", "7")
	}, nil)
	got := raw(t, s.http, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n3\r\nabc\r\n0\r\nX-Check: 42\r\n\r\n")
	for _, want := range []string{"HTTP/1.1 103 Early Hints\r\n", "abc 42", "\r\nX-Sum: 7\r\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q: %q", want, got)
		}
	}
}

// TestEndpointsOverHTTP2 speaks what backend-protocol says: HTTP/2 as gRPC has it, with trailers, and TLS.
func TestEndpointsOverHTTP2(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		mirror(w, r)
		w.Header().Set("Grpc-Status", "0")
	})
	plain := httptest.NewUnstartedServer(handler)
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	t.Cleanup(plain.Close)
	secured := httptest.NewUnstartedServer(handler)
	secured.EnableHTTP2 = true
	secured.StartTLS()
	t.Cleanup(secured.Close)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	t.Cleanup(tr.CloseIdleConnections)
	for _, tt := range []struct{ protocol, address, want string }{
		{"GRPC", addressOf(plain), "HTTP/2.0"},
		{"GRPCS", addressOf(secured), "HTTP/2.0"},
		{"HTTPS", addressOf(secured), "HTTP/1.1"},
	} {
		s.change(func(w *route.World) {
			web(w)
			endpoints(w, 1, tt.address)
			w.SetIngress(ingress("all", "", "/", map[string]string{"backend-protocol": tt.protocol}))
		})
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+s.http+"/pkg.S/M", strings.NewReader("message"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Te", "trailers")
		resp, err := (&http.Client{Transport: tr, Timeout: patience}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), "POST /pkg.S/M "+tt.want+" ") || resp.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("%s: %s %v %v", tt.protocol, body, resp.Trailer, err)
		}
	}
}

// TestEndpointThatLeaves lets the request under way end, sends nothing more, and closes the connection then.
func TestEndpointThatLeaves(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	entered, release, closed := make(chan struct{}), make(chan struct{}), make(chan struct{}, 16)
	old := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-release
		}
		fmt.Fprint(w, "old")
	}))
	old.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	old.Start()
	t.Cleanup(old.Close)
	next := backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "new") })
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 1, addressOf(old))
		w.SetIngress(ingress("all", "", "/", nil))
	})
	url := "http://" + s.http
	slow := make(chan string, 1)
	var asking sync.WaitGroup
	asking.Go(func() { slow <- do(t, keeping(), "GET", url+"/slow", "").body })
	<-entered
	if got := do(t, client(t), "GET", url+"/", ""); got.body != "old" {
		t.Fatalf("%+v", got)
	}
	s.change(func(w *route.World) { endpoints(w, 1, addressOf(next)) })
	<-closed // the idle one, at once
	for range 10 {
		if got := do(t, client(t), "GET", url+"/", ""); got.body != "new" {
			t.Errorf("%+v", got)
		}
	}
	close(release)
	if got := <-slow; got != "old" {
		t.Errorf("the request under way: %q", got)
	}
	asking.Wait()
	<-closed // its connection, when it was idle
}

// TestEvenLoad sends as many requests to each endpoint.
func TestEvenLoad(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	var counts [3]atomic.Int64
	var addresses []string
	for i := range counts {
		addresses = append(addresses, addressOf(backend(t, func(http.ResponseWriter, *http.Request) { counts[i].Add(1) })))
	}
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 3, addresses...)
		w.SetIngress(ingress("all", "", "/", nil))
	})
	c := client(t)
	for range 300 {
		do(t, c, "GET", "http://"+s.http+"/", "")
	}
	for i := range counts {
		if n := counts[i].Load(); n != 100 {
			t.Errorf("endpoint %d got %d of 300 requests", i, n)
		}
	}
}

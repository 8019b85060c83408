package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"podwire.dev/services/ingress/internal/proxy"
	"podwire.dev/services/ingress/internal/route"
)

// TestNoTunnelOfHTTP: an upgrade to another version of HTTP, or to TLS, would let a client speak past the rules to the
// endpoint. It is not passed on; the request itself is.
func TestNoTunnelOfHTTP(t *testing.T) {
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "upgrade=%q settings=%q", r.Header.Get("Upgrade"), r.Header.Get("Http2-Settings"))
	}, nil)
	for _, protocol := range []string{"h2c", "H2C", "websocket, h2c", "HTTP/2.0", "http/3", "TLS/1.2"} {
		for _, named := range []string{"Upgrade, HTTP2-Settings", "Upgrade"} {
			got := raw(t, s.http, "GET / HTTP/1.1\r\nHost: a\r\nConnection: "+named+"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nUpgrade: "+protocol+"\r\n\r\n")
			if !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, `upgrade="" settings=""`) {
				t.Errorf("Connection: %s, Upgrade: %s: %q", named, protocol, got)
			}
		}
	}
}

// TestTrailersSayNothingOfTheClient: what is taken out of a header does not come back behind the body, announced or not.
func TestTrailersSayNothingOfTheClient(t *testing.T) {
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.Trailer)
	}, nil)
	for _, announced := range []string{"Trailer: X-Sum, X-Real-Ip, X_Forwarded_For\r\n", "Trailer: X-Sum\r\n", ""} {
		got := raw(t, s.http, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"+announced+
			"\r\n1\r\nx\r\n0\r\nX-Real-Ip: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\nHost: b\r\nContent-Length: 9\r\nX-Sum: 1\r\n\r\n")
		if strings.Contains(got, "6.6.6.6") || strings.Contains(got, "Host") || strings.Contains(got, "Content-Length:[") {
			t.Errorf("%q: the endpoint got %q", announced, got)
		}
		if announced != "" && !strings.Contains(got, "X-Sum:[1]") {
			t.Errorf("%q: the endpoint did not get X-Sum: %q", announced, got)
		}
	}
}

// TestLoop: a request that comes back is not sent round again.
func TestLoop(t *testing.T) {
	s := newSite(t, proxy.Options{Limits: limits()})
	s.change(func(w *route.World) {
		web(w)
		w.SetIngress(ingress("web", "", "/", nil))
		endpoints(w, 1, s.http)
	})
	if r := do(t, client(t), http.MethodGet, "http://"+s.http+"/", ""); r.status != http.StatusLoopDetected || !strings.Contains(r.body, "Loop: ") {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestOneClientLeavesRoom: a client that holds as many requests as it may leaves room for others.
func TestOneClientLeavesRoom(t *testing.T) {
	l := limits()
	l.Requests, l.RequestsPerClient = 8, 4
	s := newSite(t, proxy.Options{Limits: l})
	var waiting atomic.Int32
	reached, release := make(chan struct{}, 8), make(chan struct{})
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			waiting.Add(1)
			reached <- struct{}{}
			<-release
		}
	}, nil)
	from := func(address string) *http.Client {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
	}
	greedy, other := from("127.0.0.2"), from("127.0.0.3")
	done := make(chan error, 4)
	for range 4 {
		go func() {
			resp, err := greedy.Get("http://" + s.http + "/wait")
			if err == nil {
				err = resp.Body.Close()
			}
			done <- err
		}()
		<-reached
	}
	if r := do(t, greedy, http.MethodGet, "http://"+s.http+"/", ""); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, "Overloaded") {
		t.Errorf("one more of the same client: %d %s", r.status, r.body)
	}
	if r := do(t, other, http.MethodGet, "http://"+s.http+"/", ""); r.status != http.StatusOK {
		t.Errorf("another client: %d %s", r.status, r.body)
	}
	close(release)
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if r := do(t, greedy, http.MethodGet, "http://"+s.http+"/", ""); r.status != http.StatusOK {
		t.Errorf("the same client later: %d %s", r.status, r.body)
	}
}

// TestRedirectsStayOnHosts: what is no host's name, as HTTP/2 lets clients send it, gets into no Location.
func TestRedirectsStayOnHosts(t *testing.T) {
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(func(http.ResponseWriter, *http.Request) {}, map[string]string{"force-ssl-redirect": "true"})
	for _, host := range []string{"3232235777/", `evil\x`, "a@b", "a?b", "a#b", "a b", "a%2fb", "a,b", "[::1", "[x]", "[::1]x", "a:b", "a:80:90", "a\"b"} {
		c := dialPreface(t, s.http)
		if got := c.get(t, host); got != "400" && got != "reset" {
			t.Errorf("authority %q: %s", host, got)
		}
	}
	if got := dialPreface(t, s.http).request(t, "GE T", "a"); got != "400" {
		t.Errorf("a method with a space: %s", got)
	}
	for _, host := range []string{"a_b.example.com", "shop.example.com:8080", "[::1]:80", "10.0.0.1", "a.", "A-1"} {
		c := dialPreface(t, s.http)
		if got := c.get(t, host); got != "308" {
			t.Errorf("authority %q: %s", host, got)
		}
	}
}

// TestLongLengths: the framing reads a Content-Length as net/http does, however long it is.
func TestLongLengths(t *testing.T) {
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Method, r.ContentLength) }, nil)
	c, err := net.Dial("tcp", s.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %s5\r\n\r\n", strings.Repeat("0", 600))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%v %v", resp, err)
	}
}

// rawHTTP2 sends requests that clients of the library would not.
type rawHTTP2 struct {
	framer *http2.Framer
	buf    bytes.Buffer
	enc    *hpack.Encoder
}

func dialPreface(t *testing.T, address string) *rawHTTP2 {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, http2.ClientPreface)
	r := &rawHTTP2{framer: http2.NewFramer(c, c)}
	r.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.enc = hpack.NewEncoder(&r.buf)
	if err := r.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return r
}

// get asks for "/" of an authority and gives the status, or "reset".
func (r *rawHTTP2) get(t *testing.T, authority string) string {
	t.Helper()
	return r.request(t, http.MethodGet, authority)
}

func (r *rawHTTP2) request(t *testing.T, method, authority string) string {
	t.Helper()
	for _, f := range [][2]string{{":method", method}, {":scheme", "http"}, {":path", "/"}, {":authority", authority}} {
		if err := r.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	err := r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.buf.Bytes(), EndStream: true, EndHeaders: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		f, err := r.framer.ReadFrame()
		if err != nil {
			t.Fatalf("authority %q: %v", authority, err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return "reset"
		}
	}
}

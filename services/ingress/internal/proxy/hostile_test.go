package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"podwire.dev/services/ingress/internal/proxy"
	"podwire.dev/services/ingress/internal/route"
)

// TestMalformed sends what parsers disagree about. Each gets a clear refusal, and the endpoint sees none of it.
func TestMalformed(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	var seen atomic.Int64
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil && r.URL.Path != "/fine" {
			seen.Add(1)
		}
	}, nil)
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, tt := range []struct{ name, text, want string }{
		{"CL and TE", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, "400 Bad Request|BadMessage: both Content-Length and Transfer-Encoding"},
		{"TE and CL", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + smuggled, "400 Bad Request|BadMessage: both"},
		{"two CLs", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", "400 Bad Request|BadMessage: Content-Length is not one number"},
		{"the same CL twice", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", "400 Bad Request|BadMessage: Content-Length is not one number"},
		{"a list of CLs", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd", "400 Bad Request|BadMessage: Content-Length is not one number"},
		{"a signed CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", "400 Bad Request|BadMessage: Content-Length is not one number"},
		{"an obscured TE", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "501 Not Implemented|BadMessage: a Transfer-Encoding other than chunked"},
		{"two TEs", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "501 Not Implemented|BadMessage"},
		{"TE in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 Bad Request|BadMessage: Transfer-Encoding in another version"},
		{"a space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400 Bad Request|"},
		{"obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n", "400 Bad Request|BadMessage: a header field is folded"},
		{"a folded TE", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "400 Bad Request|BadMessage: a header field is folded"},
		{"a bare CR", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rTransfer-Encoding: chunked\r\n\r\n", "400 Bad Request|"},
		{"NUL", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\x00c\r\n\r\n", "400 Bad Request|"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400 Bad Request|"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400 Bad Request|"},
		{"no request", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n\r\n", "400 Bad Request|"},
		{"HTTP/9.9", "GET / HTTP/9.9\r\nHost: a\r\n\r\n", "505 HTTP Version Not Supported|"},
		{"CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "405 Method Not Allowed|BadMessage: CONNECT"},
		{"an opaque target", "GET http:opaque HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "400 Bad Request|BadMessage"},
		{"a long request line", "GET /" + strings.Repeat("a", 9000) + " HTTP/1.1\r\nHost: a\r\n\r\n", "414 Request URI Too Long|BadMessage: the request line is longer than 8192 bytes"},
		{"an endless request line", strings.Repeat("a", 20000), "414 Request URI Too Long|"},
		{"many fields", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 200) + "\r\n", "431 Request Header Fields Too Large|BadMessage: more than 128 header fields"},
		{"a long field", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 80000) + "\r\n\r\n", "431 Request Header Fields Too Large|"},
		{"a bad chunk size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" + smuggled, "400 Bad Request|BadMessage: a chunk's size is not a hexadecimal number"},
		{"a chunk size in LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n" + smuggled, "400 Bad Request|BadMessage: a chunk's size"},
		{"a negative chunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", "400 Bad Request|BadMessage: a chunk's size"},
		{"a huge chunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n\r\n", "400 Bad Request|BadMessage: a chunk's size"},
		{"a chunk that is too long", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", "400 Bad Request|BadMessage: a chunk is not followed by CR LF"},
		{"a chunk with a long extension", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;" + strings.Repeat("x", 3000) + "\r\nabc\r\n0\r\n\r\n", "400 Bad Request|BadMessage"},
		{"an escape above the root", "GET /a/../../b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "400 Bad Request|BadPath"},
		{"a hidden escape", "GET /a%2f..%2fb HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "400 Bad Request|BadPath"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := raw(t, s.http, tt.text)
			status, body, _ := strings.Cut(tt.want, "|")
			if !strings.HasPrefix(got, "HTTP/1.1 "+status) || !strings.Contains(got, body) || strings.Count(got, "HTTP/1.1 ") != 1 {
				t.Errorf("got %q, want %s", got, tt.want)
			}
			if n := seen.Load(); n != 0 {
				t.Errorf("%d such requests came through", n)
			}
		})
	}
	if got := do(t, client(t), "GET", "http://"+s.http+"/fine", ""); got.status != 200 {
		t.Errorf("afterwards: %d", got.status)
	}
}

// TestMalformedOverTLS refuses the same over TLS.
func TestMalformedOverTLS(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(mirror, nil)
	c := s.secureClient("http/1.1").Transport.(*http.Transport).TLSClientConfig.Clone()
	c.InsecureSkipVerify = true
	conn := dialTLS(t, s.https, c)
	got := exchange(t, conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "both Content-Length") {
		t.Errorf("%q", got)
	}
}

// TestPipelined keeps the framing over several messages on one connection, in pieces of one byte.
func TestPipelined(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(mirror, nil)
	text := "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345" +
		"POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nX-T: 1\r\n\r\n" +
		"GET /3 HTTP/1.1\nHost: a\nConnection: close\n\n"
	c, err := net.Dial("tcp", s.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range len(text) {
		if _, err := c.Write([]byte{text[i]}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"POST /1 HTTP/1.1 host=a body=12345\n", "POST /2 HTTP/1.1 host=a body=abc\n", "GET /3 HTTP/1.1 host=a body=\n"} {
		if !bytes.Contains(data, []byte(want)) {
			t.Errorf("lacks %q: %q", want, data)
		}
	}
}

// TestSlowClients has clients that never finish a header or a handshake take every connection there is, again and again.
// Others are served: at least nine of ten requests.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	l := limits()
	l.Connections, l.ConnectionsPerClient = 256, 256
	s := newSite(t, proxy.Options{Limits: l})
	s.serves(repeatBody, nil)
	stop := make(chan struct{})
	var opened atomic.Int64
	var attack sync.WaitGroup
	attack.Go(func() {
		var held []net.Conn
		defer func() {
			for _, c := range held {
				c.Close()
			}
		}()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			address, text := s.http, "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "
			if i%2 == 1 {
				address, text = s.https, "\x16\x03\x01"
			}
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, text) // it may have been closed already
			opened.Add(1)
			if held = append(held, c); len(held) > 2*l.Connections {
				held[0].Close()
				held = held[1:]
			}
		}
	})
	served, failed := 0, 0
	c := fresh()
	for opened.Load() < 10*int64(l.Connections) || served < 100 {
		resp, err := c.Get("http://" + s.http + "/")
		if err != nil {
			failed++
			continue
		}
		if resp.Body.Close(); resp.StatusCode == 200 {
			served++
		}
	}
	close(stop)
	attack.Wait()
	if failed*10 > served {
		t.Errorf("%d of %d requests failed", failed, served+failed)
	}
	t.Logf("%d slow connections; %d requests served, %d failed", opened.Load(), served, failed)
}

// TestTimeouts closes what waits too long, with words where there is somebody to read them.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	l := limits()
	l.HeaderTimeout, l.BodyTimeout, l.IdleTimeout, l.ResponseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	s := newSite(t, proxy.Options{Limits: l})
	stop := make(chan struct{})
	defer close(stop)
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/never" {
			select {
			case <-stop:
			case <-r.Context().Done():
			}
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
	}, nil)
	for _, tt := range []struct{ name, text, want string }{
		{"a header that does not end", "GET / HTTP/1.1\r\nHost: a\r\n", ""},
		{"a body that does not end", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc", "HTTP/1.1 408 Request Timeout\r\n"},
		{"an endpoint that does not answer", "GET /never HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "HTTP/1.1 504 Gateway Timeout\r\n"},
		{"no next request", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n"},
	} {
		c, err := net.Dial("tcp", s.http)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, tt.text)
		got, _ := io.ReadAll(c)
		c.Close()
		if !strings.HasPrefix(string(got), tt.want) || tt.want == "" && len(got) > 0 {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestAnswers are the ingress' own, each with its code.
func TestAnswers(t *testing.T) {
	t.Parallel()
	l := limits()
	l.BodyBytes, l.ConnectTimeout = 100, 200*time.Millisecond
	s := newSite(t, proxy.Options{Limits: l})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/break" {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Access-Control-Allow-Origin", "endpoint")
	})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 1, addressOf(b))
		w.SetIngress(ingress("all", "", "/", nil))
		w.SetIngress(ingress("small", "", "/small", map[string]string{"proxy-body-size": "10"}))
		w.SetIngress(ingress("big", "", "/big", map[string]string{"proxy-body-size": "0"}))
		w.SetIngress(ingress("private", "", "/private", map[string]string{"whitelist-source-range": "192.0.2.1"}))
		w.SetIngress(ingress("auth", "", "/auth", map[string]string{"auth-url": "http://auth"}))
		w.SetIngress(ingress("moved", "", "/moved", map[string]string{"permanent-redirect": "https://new.example/x"}))
		w.SetIngress(ingress("cors", "", "/cors", map[string]string{"enable-cors": "true", "cors-allow-origin": "https://*.example.com"}))
		w.SetIngress(ingress("root", "root.example", "/", map[string]string{"app-root": "/app"}))
		gone := ingress("gone", "", "/gone", nil)
		gone.Rules[0].Target.Service = "gone"
		w.SetIngress(gone)
		w.SetService(route.Service{Ref: route.Ref{Namespace: "default", Name: "gone"}, Ports: []route.ServicePort{{Number: 80}}})
		w.SetSlice(route.Slice{Ref: route.Ref{Namespace: "default", Name: "gone-1"}, Service: "gone", Ports: []route.SlicePort{{Number: uint16(closed.Addr().(*net.TCPAddr).Port)}},
			Endpoints: []route.Endpoint{{Address: netip.MustParseAddr("127.0.0.1"), Ready: true}}})
		none := ingress("none", "", "/none", nil)
		none.Rules[0].Target.Service = "none"
		w.SetIngress(none)
	})
	c := client(t)
	for _, tt := range []struct {
		method, path, body string
		header             []string
		status             int
		code               string
	}{
		{"POST", "/", strings.Repeat("x", 100), nil, 200, ""},
		{"POST", "/", strings.Repeat("x", 101), nil, 413, "BodyTooLarge"},
		{"POST", "/small", strings.Repeat("x", 11), nil, 413, "BodyTooLarge"},
		{"POST", "/big", strings.Repeat("x", 1000), nil, 200, ""},
		{"GET", "/private", "", nil, 403, "ClientNotAllowed"},
		{"GET", "/auth", "", nil, 503, "NotServed"},
		{"GET", "/gone", "", nil, 502, "EndpointUnreachable"},
		{"POST", "/gone", "x", nil, 502, "EndpointUnreachable"},
		{"GET", "/none", "", nil, 503, "NoEndpoints"},
		{"POST", "/break", "", nil, 502, "EndpointFailed"},
		{"GET", "/break", "", nil, 502, "EndpointFailed"},
		{"GET", "/moved/on", "", nil, 301, "Redirect"},
		{"GET", "/", "", []string{"Host", "root.example"}, 302, "Redirect"},
		{"OPTIONS", "/cors", "", []string{"Origin", "https://a.example.com", "Access-Control-Request-Method", "PUT"}, 204, ""},
	} {
		got := do(t, c, tt.method, "http://"+s.http+tt.path, tt.body, tt.header...)
		if got.status != tt.status || tt.code != "" && !strings.Contains(got.body, "\n"+tt.code+": ") {
			t.Errorf("%s %s: %d %q, want %d %s", tt.method, tt.path, got.status, got.body, tt.status, tt.code)
		}
	}
	got := do(t, c, "GET", "http://"+s.http+"/cors", "", "Origin", "https://a.example.com")
	if list := got.header["Access-Control-Allow-Origin"]; len(list) != 1 || list[0] != "https://a.example.com" {
		t.Errorf("allowed origins: %v", list)
	}
	if got := do(t, c, "GET", "http://"+s.http+"/cors", "", "Origin", "https://a.b.example.com"); got.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another origin is allowed: %v", got.header)
	}
	// A body of unknown length is refused when it has become too long.
	chunked := raw(t, s.http, "POST /small HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n"+strings.Repeat("x", 20)+"\r\n0\r\n\r\n")
	if !strings.HasPrefix(chunked, "HTTP/1.1 413 ") {
		t.Errorf("chunked: %q", chunked)
	}
}

// TestOverload answers what is above the limit of requests, and goes on.
func TestOverload(t *testing.T) {
	t.Parallel()
	l := limits()
	l.Requests = 2
	s := newSite(t, proxy.Options{Limits: l})
	entered, release := make(chan struct{}), make(chan struct{})
	s.serves(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			entered <- struct{}{}
			<-release
		}
	}, nil)
	var held sync.WaitGroup
	for range 2 {
		held.Go(func() { do(t, keeping(), "GET", "http://"+s.http+"/hold", "") })
		<-entered
	}
	if got := do(t, client(t), "GET", "http://"+s.http+"/", ""); got.status != 503 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "Overloaded") {
		t.Errorf("%+v", got)
	}
	close(release)
	held.Wait()
	if got := do(t, client(t), "GET", "http://"+s.http+"/", ""); got.status != 200 {
		t.Errorf("afterwards: %+v", got)
	}
}

// TestRapidReset opens and resets streams as fast as it can (CVE-2023-44487), while others are served.
func TestRapidReset(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	var most, now atomic.Int64
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		repeatBody(w, r)
	}, nil)
	crowd := newCrowd(t)
	crowd.add(fresh(), "GET", "http://"+s.http+"/", 0)
	for range 4 {
		c, err := net.Dial("tcp", s.http)
		if err != nil {
			t.Fatal(err)
		}
		if err := resetStreams(c); err != nil && !isClosed(err) {
			t.Error(err)
		}
		c.Close()
	}
	crowd.until(50)
	crowd.end()
	if got := most.Load(); got > 4*128+8 {
		t.Errorf("%d requests at once", got)
	}
}

// resetStreams opens 20,000 streams on a connection with prior knowledge and resets each at once.
func resetStreams(c net.Conn) error {
	out := bufio.NewWriter(c)
	var drain sync.WaitGroup
	drain.Go(func() { _, _ = io.Copy(io.Discard, c) })
	defer drain.Wait()
	defer c.Close()
	if _, err := io.WriteString(out, http2.ClientPreface); err != nil {
		return err
	}
	f := http2.NewFramer(out, nil)
	if err := f.WriteSettings(); err != nil {
		return err
	}
	var block bytes.Buffer
	h := hpack.NewEncoder(&block)
	for i := range uint32(20_000) {
		block.Reset()
		for _, field := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}} {
			if err := h.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
				return err
			}
		}
		id := 2*i + 1
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
			return err
		}
		if err := f.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
			return err
		}
	}
	return out.Flush()
}

func isClosed(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, context.Canceled) || strings.Contains(fmt.Sprint(err), "closed")
}

package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"podwire.dev/services/ingress/internal/proxy"
	"podwire.dev/services/ingress/internal/route"
)

// crowd asks over and over until it is told to stop, in several ways at once, and counts.
type crowd struct {
	t     testing.TB
	stop  chan struct{}
	wait  sync.WaitGroup
	mu    sync.Mutex
	moved *sync.Cond
	asked int
	each  []int // by client
	over  bool  // the test failed
}

func newCrowd(t testing.TB) *crowd {
	c := &crowd{t: t, stop: make(chan struct{})}
	c.moved = sync.NewCond(&c.mu)
	return c
}

// answered counts an answer of a client, or that it gave up.
func (c *crowd) answered(client int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moved.Broadcast()
	if err != nil {
		c.t.Error(err)
		c.over = true
		return
	}
	c.asked++
	c.each[client]++
}

// ask makes one request.
func ask(client *http.Client, method, url, payload string) error {
	var in io.Reader
	if payload != "" {
		in = strings.NewReader(payload)
	}
	r, err := http.NewRequest(method, url, in)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || string(body) != payload {
		return fmt.Errorf("%s: %s, %d bytes (%w): %.80s", method, resp.Status, len(body), err, body)
	}
	return nil
}

// add begins a client whose every answer must be 200, with the body that it sent.
func (c *crowd) add(client *http.Client, method, url string, size int) {
	c.mu.Lock()
	id := len(c.each)
	c.each = append(c.each, 0)
	c.mu.Unlock()
	payload := strings.Repeat("x", size)
	c.wait.Go(func() {
		defer client.CloseIdleConnections()
		for {
			select {
			case <-c.stop:
				return
			default:
			}
			err := ask(client, method, url, payload)
			if c.answered(id, err); err != nil {
				return
			}
		}
	})
}

// turn waits until the request that each client has under way now was answered.
func (c *crowd) turn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, n := range slices.Clone(c.each) {
		for c.each[i] == n && !c.over {
			c.moved.Wait()
		}
	}
}

// until waits until so many more were answered.
func (c *crowd) until(more int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for target := c.asked + more; c.asked < target && !c.over; {
		c.moved.Wait()
	}
}

func (c *crowd) end() {
	close(c.stop)
	c.wait.Wait()
}

func repeatBody(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	_, _ = w.Write(data)
}

func fresh() *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
}

func keeping() *http.Client { return &http.Client{Timeout: patience, Transport: &http.Transport{}} }

// TestRollingReplacement replaces every endpoint, again and again, under load: a new one is added, an old one leaves the
// table and then stops as a pod does. No request fails.
func TestRollingReplacement(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	start := func() *httptest.Server { return httptest.NewServer(http.HandlerFunc(repeatBody)) }
	backends := []*httptest.Server{start(), start(), start()}
	publish := func() {
		s.change(func(w *route.World) {
			addresses := make([]string, len(backends))
			for i, b := range backends {
				addresses[i] = addressOf(b)
			}
			endpoints(w, 4, addresses...)
		})
	}
	s.change(func(w *route.World) {
		web(w)
		w.SetIngress(ingress("all", "", "/", nil))
	})
	publish()
	url := "http://" + s.http + "/"
	c := newCrowd(t)
	for range 2 {
		c.add(fresh(), "GET", url, 0)
		c.add(keeping(), "GET", url, 0)
		c.add(keeping(), "POST", url, 100)
		c.add(keeping(), "POST", url, 200_000)
	}
	c.add(fresh(), "POST", url, 100)
	for range 20 {
		c.until(20)
		backends = append(backends, start())
		publish()
		c.until(20)
		old := backends[0]
		backends = backends[1:]
		publish()
		c.turn()
		if err := old.Config.Shutdown(t.Context()); err != nil { // what is under way ends
			t.Error(err)
		}
		old.Close()
	}
	c.end()
	for _, b := range backends {
		b.Close()
	}
	t.Logf("%d requests, 20 replacements", c.asked)
}

// TestEndpointsThatDieUnannounced kills endpoints that the table still names, with their connections. What may be repeated
// does not fail, nor does what was not sent.
func TestEndpointsThatDieUnannounced(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	good := backend(t, repeatBody)
	s.change(func(w *route.World) {
		web(w)
		w.SetIngress(ingress("all", "", "/", nil))
	})
	url := "http://" + s.http + "/"
	c := newCrowd(t)
	s.change(func(w *route.World) { endpoints(w, 2, addressOf(good)) })
	c.add(fresh(), "GET", url, 0)
	c.add(keeping(), "GET", url, 0)
	c.add(keeping(), "PUT", url, 1000)
	c.add(fresh(), "PUT", url, 1000)
	for range 20 {
		bad := httptest.NewServer(http.HandlerFunc(repeatBody))
		s.change(func(w *route.World) { endpoints(w, 2, addressOf(good), addressOf(bad)) })
		c.until(20)
		bad.Listener.Close()
		bad.CloseClientConnections() // requests under way break
		c.until(20)
		bad.Close()
	}
	c.end()
}

// TestStaleConnections has an endpoint that closes each connection right after a response, unannounced.
func TestStaleConnections(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				buf := make([]byte, 4096)
				if _, err := c.Read(buf); err == nil {
					fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 1, l.Addr().String())
		w.SetIngress(ingress("all", "", "/", nil))
	})
	c := newCrowd(t)
	for range 4 {
		c.add(keeping(), "GET", "http://"+s.http+"/", 0)
	}
	c.until(400)
	c.end()
}

// TestCertificatesRotate replaces the certificate under load, over HTTP/1.1 and HTTP/2, new connections and kept ones.
func TestCertificatesRotate(t *testing.T) {
	t.Parallel()
	s := newSite(t, proxy.Options{Limits: limits()})
	ref := route.Ref{Namespace: "default", Name: "tls"}
	s.certs[ref] = s.certificate("a.example", 1)
	b := backend(t, repeatBody)
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 1, addressOf(b))
		in := ingress("a", "a.example", "/", nil)
		in.TLS = []route.TLS{{Hosts: []string{"a.example"}, Secret: "tls"}}
		w.SetIngress(in)
		w.SetSecret(route.Secret{Ref: ref})
	})
	next := make([]*tls.Certificate, 20)
	for i := range next {
		next[i] = s.certificate("a.example", int64(i)+2)
	}
	c := newCrowd(t)
	for _, protocols := range [][]string{nil, {"http/1.1"}} {
		kept, once := s.secureClient(protocols...), s.secureClient(protocols...)
		once.Transport.(*http.Transport).DisableKeepAlives = true
		c.add(kept, "POST", "https://a.example/", 100)
		c.add(once, "GET", "https://a.example/", 0)
	}
	for i, cert := range next {
		c.until(10)
		s.mu.Lock()
		s.certs[ref] = cert
		s.mu.Unlock()
		s.change(func(*route.World) {})
		got, err := tls.Dial("tcp", s.https, &tls.Config{ServerName: "a.example", RootCAs: s.pool})
		if err != nil {
			t.Fatal(err)
		}
		if serial := got.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); serial != int64(i)+2 {
			t.Errorf("shown %d right after %d was published", serial, i+2)
		}
		got.Close()
	}
	c.end()
}

// endless is a body of many bytes that are made as they are read.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), e.left)
	e.left -= n
	return int(n), nil
}

// TestLargeBodies streams half a GiB both ways, in little memory.
func TestLargeBodies(t *testing.T) {
	const size = 512 << 20
	s := newSite(t, proxy.Options{Limits: limits()})
	s.serves(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Got", fmt.Sprint(n))
		_, _ = io.Copy(w, &endless{left: size})
	}, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var high atomic.Uint64
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				var now runtime.MemStats
				runtime.ReadMemStats(&now)
				high.Store(max(high.Load(), now.HeapInuse))
				runtime.Gosched()
			}
		}
	})
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+s.http+"/", &endless{left: size})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	close(stop)
	watch.Wait()
	runtime.ReadMemStats(&after)
	if err != nil || n != size || resp.Header.Get("X-Got") != fmt.Sprint(size) {
		t.Errorf("%d bytes, %v, the endpoint got %s", n, err, resp.Header.Get("X-Got"))
	}
	if grown := int64(high.Load()) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// TestStop ends a front under load: requests under way are answered, connections are told to go elsewhere.
func TestStop(t *testing.T) {
	t.Parallel()
	front, err := proxy.New(proxy.Options{Limits: limits()})
	if err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-release
		}
		fmt.Fprint(w, "done")
	})
	w := route.NewWorld()
	w.SetClass(route.Class{Name: "ours", Controller: route.Controller})
	web(w)
	endpoints(w, 1, addressOf(b))
	w.SetIngress(ingress("all", "", "/", nil))
	front.Publish(proxy.Snapshot{Table: w.Table()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := front.Serve(l); err != nil {
			t.Error(err)
		}
	})
	url := "http://" + l.Addr().String()
	running.Go(func() {
		if got := do(t, keeping(), "GET", url+"/slow", ""); got.body != "done" || got.header.Get("Connection") != "" {
			t.Errorf("the request under way: %+v", got)
		}
	})
	<-entered
	stopped := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	running.Go(func() { stopped <- front.Stop(ctx) })
	for { // until nobody listens
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		c.Close()
		runtime.Gosched()
	}
	select {
	case err := <-stopped:
		t.Errorf("stopped with a request under way: %v", err)
	default:
	}
	close(release)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	running.Wait()
}

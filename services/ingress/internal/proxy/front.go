package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/services/ingress/internal/route"
)

// Snapshot is what requests are judged by.
type Snapshot struct {
	Table *route.Table
	// Certificates are those of the Secrets that the table may name.
	Certificates map[route.Ref]*tls.Certificate
}

// state is a Snapshot with the connections that belong to it.
type state struct {
	Snapshot
	pools []*pool // by the index of the backend
}

// Options are what a Front is made of.
type Options struct {
	Limits Limits
	// Trusted are proxies whose word about the client counts; none by default.
	Trusted []netip.Prefix
	Log     *slog.Logger
}

// Front is the HTTP server. It is safe for concurrent use.
type Front struct {
	limits  Limits
	trusted []netip.Prefix
	server  *http.Server
	proxy   *httputil.ReverseProxy
	gate    *gate
	self    *tls.Certificate
	passed  string // what requests that were passed on carry in headerLoop
	tls     *tls.Config
	buffers sync.Pool

	state    atomic.Pointer[state]
	requests atomic.Int64 // under way
	draining atomic.Bool

	mu        sync.Mutex // of Publish and Stop
	endpoints map[endpointKey]*endpoint
	listeners map[net.Listener]struct{}
	stopped   bool
}

// New makes a Front, with a certificate of its own for whoever has none; it starts nothing and routes nothing.
func New(o Options) (*Front, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	self, err := selfSigned(time.Now())
	if err != nil {
		return nil, err
	}
	f := &Front{
		limits: o.Limits, trusted: o.Trusted, self: self, passed: "podwire; id=" + rand.Text(),
		endpoints: map[endpointKey]*endpoint{}, listeners: map[net.Listener]struct{}{},
	}
	f.gate = newGate(&f.limits)
	f.buffers.New = func() any { b := make([]byte, bufferBytes); return &b }
	quiet := slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug) // what clients do wrong is no event of ours
	f.proxy = f.reverseProxy(quiet)
	f.server = f.httpServer(quiet)
	f.tls = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: f.certificate,
	}
	f.state.Store(&state{Snapshot: Snapshot{Table: route.NewWorld().Table()}})
	return f, nil
}

func (f *Front) httpServer(quiet *log.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: f, ErrorLog: quiet, Protocols: &protocols,
		ReadHeaderTimeout: f.limits.HeaderTimeout, IdleTimeout: f.limits.IdleTimeout, MaxHeaderBytes: f.limits.HeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: f.limits.Streams, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second,
			WriteByteTimeout: f.limits.SendTimeout,
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, innerOf(c))
		},
	}
}

type connKey struct{}

// Publish has requests judged by another Snapshot from now on. Connections to endpoints that left are closed as soon as
// they have no request.
func (f *Front) Publish(s Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	backends := s.Table.Backends()
	next := &state{Snapshot: s, pools: make([]*pool, len(backends))}
	used := map[endpointKey]*endpoint{}
	for i := range backends {
		p := &pool{}
		for _, at := range backends[i].Endpoints {
			key := endpointKey{at, backends[i].Protocol, backends[i].Timeout}
			e := used[key]
			if e == nil {
				if e = f.endpoints[key]; e == nil {
					e = newEndpoint(key, &f.limits)
				}
				used[key] = e
			}
			p.endpoints = append(p.endpoints, e)
		}
		next.pools[i] = p
	}
	gone := f.endpoints
	f.endpoints = used
	f.state.Store(next)
	for key, e := range gone {
		if used[key] == nil {
			e.transport.CloseIdleConnections()
		}
	}
}

// Serve takes connections from a listener until Stop; an error is one that no stop asked for.
func (f *Front) Serve(l net.Listener) error {
	return f.serve(l, func(c *conn) (net.Conn, error) { return newFramed(c, c), nil })
}

// ServeTLS is Serve for a port of HTTPS.
func (f *Front) ServeTLS(l net.Listener) error {
	return f.serve(l, func(c *conn) (net.Conn, error) {
		t := tls.Server(c, f.tls)
		ctx, cancel := context.WithTimeout(context.Background(), f.limits.HeaderTimeout)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		if t.ConnectionState().NegotiatedProtocol == "h2" {
			return t, nil
		}
		return secure{newFramed(t, c), t}, nil
	})
}

// serve accepts, prepares each connection beside the others, and hands it to net/http.
func (f *Front) serve(l net.Listener, prepare func(*conn) (net.Conn, error)) error {
	f.mu.Lock()
	if f.stopped {
		f.mu.Unlock()
		return l.Close()
	}
	f.listeners[l] = struct{}{}
	f.mu.Unlock()
	door := &handoff{Listener: l, ready: make(chan net.Conn), closed: make(chan struct{})}
	var running sync.WaitGroup
	defer running.Wait()
	served := make(chan error, 1)
	running.Go(func() { served <- f.server.Serve(door) })
	for {
		raw, err := l.Accept()
		if err != nil {
			var temporary net.Error
			if errors.As(err, &temporary) && temporary.Timeout() {
				continue
			}
			if isExhausted(err) {
				f.gate.relieve()
				continue
			}
			door.Close()
			if err := <-served; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				return errs.WrapAs(errs.Internal, err, "proxy: serve %s", l.Addr())
			}
			if !errors.Is(err, net.ErrClosed) {
				return errs.WrapAs(errs.Internal, err, "proxy: accept on %s", l.Addr())
			}
			return nil
		}
		c, ok := f.gate.admit(raw)
		if !ok {
			continue
		}
		running.Go(func() {
			ready, err := prepare(c)
			if err != nil || !door.give(ready) {
				c.Close()
			}
		})
	}
}

// handoff is a listener of connections that are ready to be served.
type handoff struct {
	net.Listener
	ready  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (h *handoff) give(c net.Conn) bool {
	select {
	case h.ready <- c:
		return true
	case <-h.closed:
		return false
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.ready:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	var err error
	h.once.Do(func() {
		close(h.closed)
		err = h.Listener.Close()
	})
	return err
}

// Stop ends the service in order: for a while connections are still taken, and told to go elsewhere with each response;
// then the requests under way are waited for, as long as ctx lets them; what is left is closed.
func (f *Front) Stop(ctx context.Context) error {
	f.draining.Store(true)
	timer := time.NewTimer(f.limits.Drain)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	f.mu.Lock()
	f.stopped = true
	for l := range f.listeners {
		l.Close()
	}
	f.mu.Unlock()
	err := f.shutdown(ctx)
	f.gate.closeAll() // upgraded connections, which net/http does not know any more
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.endpoints {
		e.transport.CloseIdleConnections()
	}
	return errs.WrapAs(errs.Unavailable, err, "proxy: %d requests were cut off", f.requests.Load())
}

// fresh is how long a connection without a request may have one on its way.
const fresh = 250 * time.Millisecond

// shutdown is net/http's, which waits for 5 s for the first request of each connection; here they wait as little as those
// that had one.
func (f *Front) shutdown(ctx context.Context) error {
	f.gate.closeWaiting(time.Now().Add(-fresh))
	soon, cancel := context.WithTimeout(ctx, fresh)
	defer cancel()
	if err := f.server.Shutdown(soon); err == nil || ctx.Err() != nil {
		return err
	}
	f.gate.closeWaiting(time.Now().Add(-fresh))
	return f.server.Shutdown(ctx)
}

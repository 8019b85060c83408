package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// gate counts connections, and closes those that wait longest where there are too many.
type gate struct {
	limits *Limits

	mu      sync.Mutex
	open    map[*conn]struct{}
	clients map[netip.Addr]*visitor
}

// visitor is one address that clients connect from.
type visitor struct {
	connections int          // of the gate's mutex
	requests    atomic.Int64 // under way
}

func newGate(l *Limits) *gate {
	return &gate{limits: l, open: map[*conn]struct{}{}, clients: map[netip.Addr]*visitor{}}
}

// conn is one accepted connection.
type conn struct {
	net.Conn
	gate   *gate
	client netip.Addr
	of     *visitor
	// busy counts its requests under way; since is when it began to wait, in Unix nanoseconds.
	busy  atomic.Int32
	since atomic.Int64
	gone  sync.Once
	// sent is when the write deadline was last moved, in Unix nanoseconds.
	sent atomic.Int64
}

// admit takes a connection in, or refuses it by closing it. A place is made by closing connections that wait.
func (g *gate) admit(c net.Conn) (*conn, bool) {
	out := &conn{Conn: c, gate: g}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		out.client = a.Addr().Unmap()
	}
	out.since.Store(time.Now().UnixNano())
	g.mu.Lock()
	var evicted []*conn
	out.of = g.clients[out.client]
	if out.of == nil {
		out.of = &visitor{}
	}
	mine := out.of.connections
	switch {
	case mine >= g.limits.ConnectionsPerClient:
		evicted = g.waitingLocked(func(o *conn) bool { return o.client == out.client })
	case len(g.open) >= g.limits.Connections:
		evicted = g.waitingLocked(func(*conn) bool { return true })
	}
	ok := len(evicted) > 0 || mine < g.limits.ConnectionsPerClient && len(g.open) < g.limits.Connections
	if ok {
		g.open[out] = struct{}{}
		g.clients[out.client] = out.of
		out.of.connections++
	}
	g.mu.Unlock()
	for _, o := range evicted {
		o.Close()
	}
	if !ok {
		c.Close()
	}
	return out, ok
}

// waitingLocked are some of the connections without a request, those that wait longest. It takes several at once, so that
// a flood costs one look at all of them per many connections.
func (g *gate) waitingLocked(of func(*conn) bool) []*conn {
	var waiting []*conn
	for o := range g.open {
		if o.busy.Load() == 0 && of(o) {
			waiting = append(waiting, o)
		}
	}
	slices.SortFunc(waiting, func(a, b *conn) int { return int(a.since.Load() - b.since.Load()) })
	return waiting[:min(len(waiting), 1+len(waiting)/32)]
}

// relieve makes room where the process itself has none, and gives others time to do so.
func (g *gate) relieve() {
	g.mu.Lock()
	waiting := g.waitingLocked(func(*conn) bool { return true })
	g.mu.Unlock()
	for _, c := range waiting {
		c.Close()
	}
	timer := time.NewTimer(relief)
	defer timer.Stop()
	<-timer.C
}

// relief is the pause after a failed accept.
const relief = 5 * time.Millisecond

// isExhausted says whether an accept failed for want of something that comes back.
func isExhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// closeWaiting closes the connections that have waited since before a point in time.
func (g *gate) closeWaiting(before time.Time) {
	g.mu.Lock()
	var waiting []*conn
	for c := range g.open {
		if c.busy.Load() == 0 && c.since.Load() <= before.UnixNano() {
			waiting = append(waiting, c)
		}
	}
	g.mu.Unlock()
	for _, c := range waiting {
		c.Close()
	}
}

// closeAll closes what is left.
func (g *gate) closeAll() {
	g.mu.Lock()
	left := make([]*conn, 0, len(g.open))
	for c := range g.open {
		left = append(left, c)
	}
	g.mu.Unlock()
	for _, c := range left {
		c.Close()
	}
}

// begin and end frame a request. begin says how many its client has under way now.
func (c *conn) begin() int64 {
	c.busy.Add(1)
	return c.of.requests.Add(1)
}

func (c *conn) end() {
	c.since.Store(time.Now().UnixNano())
	c.busy.Add(-1)
	c.of.requests.Add(-1)
}

// Close gives the place back.
func (c *conn) Close() error {
	c.gone.Do(func() {
		g := c.gate
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.open, c)
		if c.of.connections--; c.of.connections == 0 {
			delete(g.clients, c.client)
		}
	})
	return c.Conn.Close()
}

// Write bounds how long a client may take to take what it asked for. The deadline is moved in steps, since that costs more
// than a look at the clock.
func (c *conn) Write(p []byte) (int, error) {
	now := time.Now()
	if step := c.gate.limits.SendTimeout / 8; now.UnixNano()-c.sent.Load() > int64(step) {
		c.sent.Store(now.UnixNano())
		if err := c.SetWriteDeadline(now.Add(c.gate.limits.SendTimeout)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

// CloseWrite says to the client that nothing follows; net/http lingers with it.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// framed is a connection that speaks HTTP/1, as net/http reads it: what is not to be taken ends it.
type framed struct {
	net.Conn
	inner   *conn
	framing framing
	// refused is set once; from then on the answer is ours, whatever net/http writes.
	refused atomic.Pointer[refusal]
	told    bool
}

func newFramed(c net.Conn, inner *conn) *framed {
	return &framed{Conn: c, inner: inner, framing: framing{maxLine: inner.gate.limits.RequestLineBytes, maxFields: inner.gate.limits.HeaderFields}}
}

// refusedError is a read that met what is refused.
type refusedError struct{ refusal }

func (e *refusedError) Error() string { return "refused: " + e.reason }

// Read passes on what may pass.
func (f *framed) Read(p []byte) (int, error) {
	if r := f.refused.Load(); r != nil {
		return 0, &refusedError{*r}
	}
	n, err := f.Conn.Read(p)
	if n == 0 {
		return n, err
	}
	inBody := f.framing.state > inFields
	if r := f.framing.feed(p[:n]); r != nil {
		if !inBody { // nobody handles a request now: the answer can be ours alone
			f.refused.Store(r)
		}
		return 0, &refusedError{*r}
	}
	return n, err
}

// Write puts our own words in the place of net/http's, which do not say what was wrong.
func (f *framed) Write(p []byte) (int, error) {
	r := f.refused.Load()
	if r == nil {
		return f.Conn.Write(p)
	}
	if f.told {
		return len(p), nil
	}
	f.told = true
	status := fmt.Sprintf("%d %s", r.status, http.StatusText(r.status))
	text := status + "\n" + "BadMessage: " + r.reason + "\n"
	_, err := fmt.Fprintf(f.Conn, "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", status, len(text), text)
	return len(p), err
}

// CloseWrite is the inner connection's.
func (f *framed) CloseWrite() error {
	if half, ok := f.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// secure is a framed connection over TLS; net/http asks it for its state.
type secure struct {
	*framed
	tls *tls.Conn
}

// ConnectionState is that of the handshake.
func (s secure) ConnectionState() tls.ConnectionState { return s.tls.ConnectionState() }

// innerOf is the accepted connection below what net/http serves.
func innerOf(c net.Conn) *conn {
	switch c := c.(type) {
	case *framed:
		return c.inner
	case secure:
		return c.inner
	case *tls.Conn:
		inner, _ := c.NetConn().(*conn)
		return inner
	}
	return nil
}

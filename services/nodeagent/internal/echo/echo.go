// Package echo is the built-in image podwire.dev/echo: a server that says who it is
// and whom it sees, so that a cluster can be tested with nothing to pull.
//
// In: the Pod's name and its containerPorts. Out: on each port, in its protocol, the
// one line "<pod> <client address>" (the address without a port, IPv6 without
// brackets). A TCP or SCTP port answers HTTP to what begins as HTTP, and the bare line
// after 200 ms of silence or to any other bytes, then once per line that it is sent;
// an HTTP answer's header says what arrived (Echo-Request, Echo-Host,
// Echo-Forwarded-For); UDP answers each datagram from the address it was sent to.
//
// A Pod's end is announced to clients and to the Pod at the same time, so those who
// have not heard of it yet go on calling: after Serve's context ended, the server
// lingers, which is as if nothing had happened, except that each HTTP answer asks for
// the connection's end. Then it stops listening, and what was begun is answered.
//
// Invariants: it listens on both families where the kernel has both; connections are
// bounded in number and in idle time, lines in length; nobody who called while it
// lingered is turned away. It must not read files or resolve names.
package echo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// silence is how long a port waits for the client to speak before it answers raw.
	silence = 200 * time.Millisecond
	// idle ends a connection on which nothing arrives.
	idle = 5 * time.Minute
	// maxLinger is how long clients get to hear that the Pod ends: some ten times what
	// it takes an endpoint's removal to reach every node.
	maxLinger = 2 * time.Second
	// drain is how long begun answers may take after it stopped listening.
	drain = 5 * time.Second
	// maxConns bounds the open connections of one container; more wait in the backlog.
	maxConns = 4096
	// maxLine bounds what is read as one line.
	maxLine = 4096
)

// Config is what the image listens on.
type Config struct {
	// Name is the first word of each answer.
	Name string `json:"name"`
	// Ports are what to listen on; empty means TCP 80.
	Ports []Port `json:"ports,omitempty"`
	// Linger is how long it goes on accepting after the end was asked for, in
	// nanoseconds; see LingerFor.
	Linger time.Duration `json:"linger,omitempty"`
}

// LingerFor is how long the server of a Pod with this grace period
// (spec.terminationGracePeriodSeconds) lingers: 2 s, or half of the grace period where
// that is less, so that the other half is left for what was begun.
func LingerFor(grace time.Duration) time.Duration { return min(maxLinger, grace/2) }

// Port is one port to listen on.
type Port struct {
	// Protocol is TCP, UDP or SCTP.
	Protocol string `json:"protocol"`
	Number   uint16 `json:"number"`
}

// Server holds the open sockets.
type Server struct {
	name      string
	listeners []net.Listener
	datagrams []*net.UDPConn
	slots     chan struct{}
	linger    time.Duration
	after     func(time.Duration) <-chan time.Time // time.After
	leaving   atomic.Bool

	mu    sync.Mutex
	conns map[net.Conn]struct{} // raw connections; HTTP's are http.Server's
}

// Listen opens every port, on both families where the kernel has both. It opens all
// or none.
func Listen(config Config) (*Server, error) {
	ports := config.Ports
	if len(ports) == 0 {
		ports = []Port{{Protocol: "TCP", Number: 80}}
	}
	s := &Server{
		name: config.Name, slots: make(chan struct{}, maxConns), conns: map[net.Conn]struct{}{},
		linger: config.Linger, after: time.After,
	}
	for _, p := range ports {
		if err := s.open(p); err != nil {
			s.close()
			return nil, fmt.Errorf("listen on %s port %d: %w", p.Protocol, p.Number, err)
		}
	}
	return s, nil
}

func (s *Server) open(p Port) error {
	address := net.JoinHostPort("", strconv.Itoa(int(p.Number)))
	switch p.Protocol {
	case "TCP":
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	case "SCTP":
		l, err := listenSCTP(p.Number)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	case "UDP":
		c, err := listenUDP(address)
		if err != nil {
			return err
		}
		s.datagrams = append(s.datagrams, c)
	default:
		return errors.New("no such protocol")
	}
	return nil
}

// Addrs are the addresses that are listened on, streams first.
func (s *Server) Addrs() []net.Addr {
	var out []net.Addr
	for _, l := range s.listeners {
		out = append(out, l.Addr())
	}
	for _, c := range s.datagrams {
		out = append(out, c.LocalAddr())
	}
	return out
}

func (s *Server) close() {
	for _, l := range s.listeners {
		l.Close()
	}
	for _, c := range s.datagrams {
		c.Close()
	}
}

// Serve answers until ctx ends and the time to linger is over, then finishes the
// answers it has begun and returns nil. It must be called once.
func (s *Server) Serve(ctx context.Context) error {
	pipe := newConnListener()
	web := &http.Server{
		Handler:           http.HandlerFunc(s.answerHTTP),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       idle,
		MaxHeaderBytes:    64 << 10,
		Protocols:         new(http.Protocols),
	}
	web.Protocols.SetHTTP1(true)
	web.Protocols.SetUnencryptedHTTP2(true)

	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, gctx := errgroup.WithContext(life)
	g.Go(func() error {
		defer end()
		s.leave(ctx, gctx)
		return nil
	})
	g.Go(func() error { return ignoreClosed(web.Serve(pipe)) })
	var acceptors, raw sync.WaitGroup
	for _, l := range s.listeners {
		acceptors.Add(1)
		g.Go(func() error {
			defer acceptors.Done()
			return s.accept(gctx, l, pipe, &raw)
		})
	}
	for _, c := range s.datagrams {
		g.Go(func() error { return ignoreClosed(s.serveUDP(c)) })
	}
	g.Go(func() error {
		<-gctx.Done()
		s.close()
		acceptors.Wait()
		s.hangUp()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		err := web.Shutdown(stop)
		raw.Wait()
		return err
	})
	return g.Wait()
}

// leave returns when it is time to stop listening: the time to linger after asked
// ended, or at once where nothing is left to serve.
func (s *Server) leave(asked, served context.Context) {
	select {
	case <-asked.Done():
	case <-served.Done():
		return
	}
	s.leaving.Store(true)
	select {
	case <-s.after(s.linger):
	case <-served.Done():
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// hangUp ends the wait of raw connections for a next line.
func (s *Server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
}

// accept takes connections and gives each a goroutine, which raw counts.
func (s *Server) accept(ctx context.Context, l net.Listener, web *connListener, raw *sync.WaitGroup) error {
	for {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		if err != nil {
			<-s.slots
			if !isTransient(err) {
				return ignoreClosed(err)
			}
			select {
			case <-time.After(10 * time.Millisecond): // what is short may be back
			case <-ctx.Done():
			}
			continue
		}
		raw.Go(func() { s.serve(ctx, &slotConn{Conn: c, slots: s.slots}, web) })
	}
}

// serve decides between HTTP and raw by the first bytes.
func (s *Server) serve(ctx context.Context, c net.Conn, web *connListener) {
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	if ctx.Err() != nil {
		c.Close()
		return
	}
	first := make([]byte, len(longestMethod))
	_ = c.SetReadDeadline(time.Now().Add(silence))
	n := 0
	for {
		m, err := c.Read(first[n:])
		n += m
		verdict := sniff(first[:n])
		if verdict == isHTTP {
			_ = c.SetReadDeadline(time.Time{})
			web.hand(&prefixConn{Conn: c, prefix: first[:n]})
			return
		}
		if verdict == isRaw || err != nil {
			s.serveRaw(ctx, &prefixConn{Conn: c, prefix: first[:n]})
			return
		}
	}
}

// verdict is what the first bytes of a connection say.
type verdict int

const (
	undecided verdict = iota
	isHTTP
	isRaw
)

const longestMethod = "CONNECT "

// sniff tells HTTP from anything else by its method (RFC 9110 section 9; PRI is the
// preface of HTTP/2).
func sniff(first []byte) verdict {
	if len(first) == 0 {
		return undecided
	}
	open := false
	for _, m := range []string{"GET ", "HEAD ", "POST ", "PUT ", "PATCH ", "DELETE ", "OPTIONS ", "TRACE ", "PRI ", longestMethod} {
		if strings.HasPrefix(string(first), m) {
			return isHTTP
		}
		open = open || strings.HasPrefix(m, string(first))
	}
	if open {
		return undecided
	}
	return isRaw
}

func (s *Server) answerHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if s.leaving.Load() {
		// An idle connection that the server closes may meet the next request half way; one
		// that the client was told of cannot (RFC 9112 section 9.6). HTTP/2 says GOAWAY.
		w.Header().Set("Connection", "close")
	}
	// What arrived, for those who look at what is between them and us.
	w.Header().Set("Echo-Request", r.Method+" "+r.RequestURI)
	w.Header().Set("Echo-Host", r.Host)
	if via := r.Header.Values("X-Forwarded-For"); len(via) > 0 {
		w.Header().Set("Echo-Forwarded-For", strings.Join(via, ", "))
	}
	fmt.Fprintf(w, "%s %s\n", s.name, strings.TrimPrefix(host, "::ffff:"))
}

// line is the answer to a client.
func (s *Server) line(client net.Addr) string {
	host, _, err := net.SplitHostPort(client.String())
	if err != nil {
		host = client.String()
	}
	return s.name + " " + strings.TrimPrefix(host, "::ffff:") + "\n"
}

// serveRaw greets, then answers each further line. What arrived before the greeting
// is answered by it, up to its first line end.
func (s *Server) serveRaw(ctx context.Context, c *prefixConn) {
	defer c.Close()
	answer := []byte(s.line(c.RemoteAddr()))
	greeted := len(c.prefix) == 0
	if greeted && write(c, answer) != nil {
		return
	}
	lines := lineReader{conn: c}
	for {
		wait := idle
		if !greeted {
			wait = silence
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		if ctx.Err() != nil {
			// hangUp may have come before this deadline.
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
		err := lines.next()
		if err != nil && !lines.forget() {
			return
		}
		if write(c, answer) != nil || ctx.Err() != nil {
			return
		}
		var ne net.Error
		if err != nil && !(errors.As(err, &ne) && ne.Timeout()) {
			return
		}
		greeted = true
	}
}

func write(c net.Conn, b []byte) error {
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := c.Write(b)
	return err
}

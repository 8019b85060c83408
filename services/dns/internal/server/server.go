package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/services/dns/internal/resolver"
)

// Limits bound what clients can make the server hold. Zero values are the defaults.
type Limits struct {
	// Forwarded is how many questions may wait for others at a time, of all clients and of one address: 2048 and 256, so
	// that none takes the room of all. More are answered SERVFAIL.
	Forwarded, ForwardedPerClient int
	// Connections over TCP at a time, of all clients and of one address: 1024 and 64. More are closed.
	Connections, ConnectionsPerClient int
	// Pipelined is how many questions of one connection are worked on at a time: 32. More wait in the socket.
	Pipelined int
	// Idle is how long a connection may wait for its next question: 10 s (RFC 7766 section 6.2.3).
	Idle time.Duration
	// Transfer is how long one message may take to arrive or to leave over TCP: 5 s.
	Transfer time.Duration
}

const (
	defaultForwarded            = 2048
	defaultForwardedPerClient   = 256
	defaultConnections          = 1024
	defaultConnectionsPerClient = 64
	defaultPipelined            = 32
	defaultIdle                 = 10 * time.Second
	defaultTransfer             = 5 * time.Second
	// maxQuery bounds a question, in bytes: a name and EDNS take less than 600.
	maxQuery = 4096
	// receiveBuffer is what the kernel keeps of questions that come faster than they are read, in bytes.
	receiveBuffer = 4 << 20
)

func (l Limits) filled() Limits {
	number := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	number(&l.Forwarded, defaultForwarded)
	number(&l.ForwardedPerClient, defaultForwardedPerClient)
	number(&l.Connections, defaultConnections)
	number(&l.ConnectionsPerClient, defaultConnectionsPerClient)
	number(&l.Pipelined, defaultPipelined)
	if l.Idle == 0 {
		l.Idle = defaultIdle
	}
	if l.Transfer == 0 {
		l.Transfer = defaultTransfer
	}
	return l
}

// Server answers on one address, over UDP and TCP.
type Server struct {
	resolver *resolver.Resolver
	limits   Limits
	log      *slog.Logger
	udp      *net.UDPConn
	tcp      *net.TCPListener

	mu sync.Mutex
	// conns are the connections, clients how many of them each address has.
	conns   map[*net.TCPConn]struct{}
	clients map[netip.Addr]int
	// waiting are the questions that wait for others, of all clients and of each.
	waiting   int
	waitingOf map[netip.Addr]int
}

// Listen binds the sockets of an address; it answers nothing yet. Port 0 takes one that is free, the same for both. The
// address need not be there yet: it is bound to as soon as it is (ip(7), IP_FREEBIND).
func Listen(ctx context.Context, addr netip.AddrPort, r *resolver.Resolver, limits Limits, log *slog.Logger) (*Server, error) {
	limits = limits.filled()
	s := &Server{
		resolver: r, limits: limits, log: log,
		conns: map[*net.TCPConn]struct{}{}, clients: map[netip.Addr]int{}, waitingOf: map[netip.Addr]int{},
	}
	err := s.bind(ctx, addr)
	for tries := 1; addr.Port() == 0 && errors.Is(err, syscall.EADDRINUSE) && tries < freePorts; tries++ {
		err = s.bind(ctx, addr) // what was free for one protocol was not for the other
	}
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "dns: listen on %s", addr)
	}
	return s, nil
}

// freePorts is how many free ports are tried.
const freePorts = 20

func (s *Server) bind(ctx context.Context, addr netip.AddrPort) error {
	lc := net.ListenConfig{Control: freebind(addr.Addr())}
	packets, err := lc.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		return err
	}
	udp := packets.(*net.UDPConn)
	streams, err := lc.Listen(ctx, "tcp", udp.LocalAddr().String())
	if err != nil {
		_ = udp.Close()
		return err
	}
	// The kernel gives what it may (net.core.rmem_max); less is no failure.
	_ = udp.SetReadBuffer(receiveBuffer)
	s.udp, s.tcp = udp, streams.(*net.TCPListener)
	return nil
}

func freebind(addr netip.Addr) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var opt error
		err := c.Control(func(fd uintptr) {
			if addr.Is4() {
				opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
			} else {
				opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			}
		})
		return errors.Join(err, opt)
	}
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

// Serve answers until ctx ends, then finishes what it is working on. An error is one of the sockets.
func (s *Server) Serve(told context.Context) error {
	ctx, cancel := context.WithCancelCause(told)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(func() { cancel(s.readUDP(ctx)) })
	}
	wg.Go(func() { cancel(s.accept(ctx)) })
	<-ctx.Done()
	_ = s.udp.SetReadDeadline(time.Unix(1, 0)) // the answers under way may still be sent
	_ = s.tcp.Close()
	s.hangUp()
	wg.Wait()
	_ = s.udp.Close()
	if told.Err() != nil {
		return nil
	}
	return errs.WrapAs(errs.Unavailable, context.Cause(ctx), "dns: serve on %s", s.Addr())
}

// readUDP answers packets. Those of the zone are answered right here, so that they cost one read and one write.
func (s *Server) readUDP(ctx context.Context) error {
	var errands sync.WaitGroup
	defer errands.Wait()
	h := newHandler(s.resolver, false)
	buf := make([]byte, maxQuery)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		reply, e := h.handle(buf[:n])
		switch {
		case reply != nil:
			s.send(reply, from)
		case e == nil:
		case s.room(from.Addr()):
			errands.Go(func() {
				defer s.leave(from.Addr())
				reply, err := run(ctx, s.resolver, e, false)
				s.sendPacked(reply, err, from)
			})
		default:
			reply, err := busy(e, false)
			s.sendPacked(reply, err, from)
		}
	}
}

// room takes a place for a question that has to wait for others; leave gives it back.
func (s *Server) room(client netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting >= s.limits.Forwarded || s.waitingOf[client] >= s.limits.ForwardedPerClient {
		return false
	}
	s.waiting++
	s.waitingOf[client]++
	return true
}

func (s *Server) leave(client netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
	if s.waitingOf[client]--; s.waitingOf[client] == 0 {
		delete(s.waitingOf, client)
	}
}

func (s *Server) sendPacked(reply []byte, err error, to netip.AddrPort) {
	if err != nil { // an upstream server's record that cannot be written again
		s.log.Debug("an answer could not be made", "client", to, "error", err)
		return
	}
	s.send(reply, to)
}

// send sends a packet. That a client cannot be reached is its own affair: it asks again.
func (s *Server) send(reply []byte, to netip.AddrPort) {
	if _, err := s.udp.WriteToUDPAddrPort(reply, to); err != nil {
		s.log.Debug("an answer could not be sent", "client", to, "error", err)
	}
}

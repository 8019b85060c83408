package testnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Outcome says how an attempt to reach something ended.
type Outcome string

// The outcomes.
const (
	// Reached: the far end answered.
	Reached Outcome = "reached"
	// Refused: a reset or a port unreachable came back.
	Refused Outcome = "refused"
	// Unreachable: the own kernel or a router on the way said that the destination cannot be reached or is forbidden.
	Unreachable Outcome = "unreachable"
	// TimedOut: nothing came back within the timeout.
	TimedOut Outcome = "timed out"
)

// Result is the end of one attempt.
type Result struct {
	Outcome Outcome
	// Reply is the line with which the server greeted, "<name> <client address>", without the line break.
	Reply string
	// Server and Client are the two halves of Reply.
	Server string
	Client netip.AddrPort
	// Err is the cause where Outcome is not Reached.
	Err error
}

// Attempt is one try to reach a server. Only Target is required.
type Attempt struct {
	Target netip.AddrPort
	// From is the source; the zero value lets the kernel choose.
	From netip.AddrPort
	// Timeout is 2 s where zero.
	Timeout time.Duration
	// Payload is sent to the server, which must send it back after its greeting.
	Payload []byte
}

func (a Attempt) timeout() time.Duration {
	if a.Timeout == 0 {
		return 2 * time.Second
	}
	return a.Timeout
}

// TCP tries to reach a server of ServeTCP. Any end other than the four outcomes fails the test.
func (s *NS) TCP(a Attempt) Result {
	s.t.Helper()
	d := net.Dialer{Timeout: a.timeout()}
	if a.From.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(a.From)
	}
	return s.attempt(a, "tcp", &d)
}

// UDP tries to reach a server of ServeUDP with one datagram. Any end other than the four outcomes fails the test.
func (s *NS) UDP(a Attempt) Result {
	s.t.Helper()
	d := net.Dialer{Timeout: a.timeout()}
	if a.From.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(a.From)
	}
	return s.attempt(a, "udp", &d)
}

func (s *NS) attempt(a Attempt, network string, d *net.Dialer) Result {
	s.t.Helper()
	var conn net.Conn
	err := s.Do(func() error {
		var err error
		conn, err = d.Dial(network, a.Target.String())
		return err
	})
	var reply string
	if err == nil {
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(a.timeout()))
		reply, err = exchange(conn, network, a.Payload)
	}
	r := Result{Outcome: Reached, Reply: reply, Err: err}
	if err != nil {
		outcome, known := outcomeOf(err)
		if !known {
			s.t.Fatalf("in namespace %s: %s %s: %v", s.name, network, a.Target, err)
		}
		r.Outcome = outcome
		return r
	}
	server, client, _ := strings.Cut(reply, " ")
	r.Server = server
	if r.Client, err = netip.ParseAddrPort(client); err != nil {
		s.t.Fatalf("in namespace %s: %s %s: answer %q is not from a testnet server", s.name, network, a.Target, reply)
	}
	return r
}

// exchange sends the payload and reads the greeting and the echoed payload.
func exchange(conn net.Conn, network string, payload []byte) (string, error) {
	if network == "udp" {
		if _, err := conn.Write(payload); err != nil {
			return "", err
		}
		buf := make([]byte, 65536)
		n, err := conn.Read(buf)
		if err != nil {
			return "", err
		}
		greeting, echoed, _ := strings.Cut(string(buf[:n]), "\n")
		return greeting, sameEcho([]byte(echoed), payload)
	}
	r := bufio.NewReader(conn)
	greeting, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(payload)
		sent <- err
	}()
	echoed := make([]byte, len(payload))
	_, err = io.ReadFull(r, echoed)
	if werr := <-sent; err == nil {
		err = werr
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(greeting, "\n"), sameEcho(echoed, payload)
}

func sameEcho(got, want []byte) error {
	if string(got) != string(want) {
		return fmt.Errorf("the payload of %d bytes came back changed (%d bytes)", len(want), len(got))
	}
	return nil
}

func outcomeOf(err error) (Outcome, bool) {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return TimedOut, true
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF):
		return Refused, true
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EINVAL):
		return Unreachable, true
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return TimedOut, true
	}
	return "", false
}

// ServeTCP serves TCP at an address (an unspecified address serves all of its family, port 0 chooses one) until the test
// ends, and returns where. Each client is greeted with "<name> <client address>\n"; then its bytes come back. Addresses
// that the namespace does not have yet may be served too.
func (s *NS) ServeTCP(name string, at netip.AddrPort) netip.AddrPort {
	s.t.Helper()
	var l net.Listener
	s.Must(func() error {
		var err error
		lc := net.ListenConfig{Control: freeBind}
		l, err = lc.Listen(context.Background(), "tcp"+familyOf(at.Addr()), at.String())
		return err
	})
	var conns sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	closed := false
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if closed {
				_ = c.Close()
			} else {
				open[c] = struct{}{}
			}
			mu.Unlock()
			conns.Go(func() {
				_, _ = fmt.Fprintf(c, "%s %s\n", name, unmapped(c.RemoteAddr()))
				_, _ = io.Copy(c, c)
				_ = c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	s.t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		closed = true
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		conns.Wait()
	})
	return unmapped(l.Addr())
}

// ServeUDP serves UDP as ServeTCP serves TCP: each datagram is answered by one, "<name> <client address>\n" and the
// datagram's bytes.
func (s *NS) ServeUDP(name string, at netip.AddrPort) netip.AddrPort {
	s.t.Helper()
	var c udpConn
	s.Must(func() error {
		lc := net.ListenConfig{Control: freeBind}
		conn, err := lc.ListenPacket(context.Background(), "udp"+familyOf(at.Addr()), at.String())
		if err != nil {
			return err
		}
		c.PacketConn = conn
		if at.Addr().Is4() {
			c.v4 = ipv4.NewPacketConn(conn)
			return c.v4.SetControlMessage(ipv4.FlagDst, true)
		}
		c.v6 = ipv6.NewPacketConn(conn)
		return c.v6.SetControlMessage(ipv6.FlagDst, true)
	})
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, asked, err := c.read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error that answers an earlier datagram
			}
			c.write(append(fmt.Appendf(nil, "%s %s\n", name, unmapped(from)), buf[:n]...), from, asked)
		}
	})
	s.t.Cleanup(func() {
		_ = c.Close()
		done.Wait()
	})
	return unmapped(c.LocalAddr())
}

// udpConn answers from the address that was asked, which the kernel does not do for an unspecified address.
type udpConn struct {
	net.PacketConn
	v4 *ipv4.PacketConn // one of the two
	v6 *ipv6.PacketConn
}

func (c udpConn) read(b []byte) (n int, from net.Addr, asked net.IP, err error) {
	if c.v4 != nil {
		n, cm, from, err := c.v4.ReadFrom(b)
		if cm != nil {
			asked = cm.Dst
		}
		return n, from, asked, err
	}
	n, cm, from, err := c.v6.ReadFrom(b)
	if cm != nil {
		asked = cm.Dst
	}
	return n, from, asked, err
}

// write sends an answer; that it got lost is for the client to notice.
func (c udpConn) write(b []byte, to net.Addr, from net.IP) {
	if c.v4 != nil {
		_, _ = c.v4.WriteTo(b, &ipv4.ControlMessage{Src: from}, to)
		return
	}
	_, _ = c.v6.WriteTo(b, &ipv6.ControlMessage{Src: from}, to)
}

// freeBind lets a server bind an address that its namespace does not have yet.
func freeBind(network, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		if strings.HasSuffix(network, "6") {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	})
	return errors.Join(cerr, err)
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

func unmapped(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

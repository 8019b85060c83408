package echo

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// slotConn gives its place back when it is closed, whoever closes it.
type slotConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *slotConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}

// prefixConn is a connection of which some bytes were read already.
type prefixConn struct {
	net.Conn
	prefix []byte
}

func (c *prefixConn) Read(p []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(p, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// lineReader finds the ends of lines and forgets the lines. A line longer than
// maxLine counts as several.
type lineReader struct {
	conn net.Conn
	buf  [maxLine]byte
	n    int
}

// next returns at the end of a line, or with the error that came before it.
func (r *lineReader) next() error {
	for {
		if i := bytes.IndexByte(r.buf[:r.n], '\n'); i >= 0 {
			r.n = copy(r.buf[:], r.buf[i+1:r.n])
			return nil
		}
		if r.n == len(r.buf) {
			r.n = 0
			return nil
		}
		m, err := r.conn.Read(r.buf[r.n:])
		r.n += m
		if err != nil && bytes.IndexByte(r.buf[:r.n], '\n') < 0 {
			return err
		}
	}
}

// forget drops a last line that has no end, and says whether there was one.
func (r *lineReader) forget() bool {
	had := r.n > 0
	r.n = 0
	return had
}

// connListener hands connections that were accepted elsewhere to an http.Server.
type connListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newConnListener() *connListener {
	return &connListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// hand passes a connection on, or closes it if nobody takes any more.
func (l *connListener) hand(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	}
}

// Accept is net.Listener's.
func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close is net.Listener's.
func (l *connListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr is net.Listener's; it has none of its own.
func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }

// isTransient says that accept(2) may be tried again (its own page names the errors).
func isTransient(err error) bool {
	for _, e := range []error{unix.ECONNABORTED, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// listenUDP opens a socket that learns the address each datagram was sent to.
func listenUDP(address string) (*net.UDPConn, error) {
	pc, err := net.ListenPacket("udp", address)
	if err != nil {
		return nil, err
	}
	c := pc.(*net.UDPConn)
	raw, err := c.SyscallConn()
	if err == nil {
		var opt error
		err = raw.Control(func(fd uintptr) {
			opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			// The socket is AF_INET where the kernel has no IPv6.
			if domain, derr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); derr == nil && domain == unix.AF_INET6 {
				opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			}
		})
		err = errors.Join(err, opt)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// serveUDP answers each datagram, from the address it was sent to: with several
// addresses the kernel's choice would be another flow to conntrack.
func (s *Server) serveUDP(c *net.UDPConn) error {
	var payload [64]byte
	var oob [256]byte
	for {
		_, n, _, client, err := c.ReadMsgUDPAddrPort(payload[:], oob[:])
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			// What a former answer met (an unreachable client) is reported here.
			continue
		}
		answer := s.line(net.UDPAddrFromAddrPort(client))
		_, _, _ = c.WriteMsgUDPAddrPort([]byte(answer), replyFrom(oob[:n]), client)
	}
}

// replyFrom turns the control message "was sent to" into "send from".
func replyFrom(oob []byte) []byte {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var v4 []byte
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			var info unix.Inet6Pktinfo
			copy(info.Addr[:], m.Data)
			return unix.PktInfo6(&info)
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			var info unix.Inet4Pktinfo
			copy(info.Spec_dst[:], m.Data[4:8])
			v4 = unix.PktInfo4(&info)
		}
	}
	return v4
}

// listenSCTP opens a one-to-one style SCTP socket (RFC 6458 section 4), which reads
// and writes like TCP's.
func listenSCTP(port uint16) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, errors.New("this kernel has no SCTP (module sctp)")
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close()
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return nil, err
	}
	return net.FileListener(f)
}

package probe

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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// greeting is what tcp, udp and hold send: a line that no protocol takes for its own.
	greeting = "podwire probe\n"
	// maxAnswer bounds what is printed of an answer, in bytes.
	maxAnswer = 64 << 10
)

// dialer makes sockets that may have a foreign source address and that hear every
// ICMP error.
func dialer(o options) *net.Dialer {
	d := &net.Dialer{Resolver: &net.Resolver{PreferGo: true}}
	d.Control = func(network, _ string, raw syscall.RawConn) error {
		var opt error
		err := raw.Control(func(fd uintptr) { opt = prepare(int(fd), network, o.from) })
		return errors.Join(err, opt)
	}
	return d
}

// prepare sets the options of one socket before it is bound.
func prepare(fd int, network string, from netip.Addr) error {
	level, recvErr, transparent := unix.IPPROTO_IP, unix.IP_RECVERR, unix.IP_TRANSPARENT
	if strings.HasSuffix(network, "6") {
		level, recvErr, transparent = unix.IPPROTO_IPV6, unix.IPV6_RECVERR, unix.IPV6_TRANSPARENT
	}
	if strings.HasPrefix(network, "udp") {
		// Without it UDP hears of a closed port only (udp(7)), not of a prohibition.
		if err := unix.SetsockoptInt(fd, level, recvErr, 1); err != nil {
			return os.NewSyscallError("setsockopt(RECVERR)", err)
		}
	}
	if from.IsValid() {
		// Needed for an address that is not ours; without the right to it, ours still work.
		_ = unix.SetsockoptInt(fd, level, transparent, 1)
	}
	return nil
}

// dial opens a connected socket to o.target before ctx ends.
func dial(ctx context.Context, o options, network, target string) (net.Conn, error) {
	d := dialer(o)
	if o.from.IsValid() {
		if o.from.Unmap().Is4() {
			network += "4"
		} else {
			network += "6"
		}
		if strings.HasPrefix(network, "tcp") {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.from, 0))
		} else {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(o.from, 0))
		}
	}
	return d.DialContext(ctx, network, target)
}

// classify says what an error means for the question.
func classify(err error) result {
	var dns *net.DNSError
	var timeout net.Error
	var addr *net.AddrError
	switch {
	case errors.As(err, &dns) && !dns.IsTimeout:
		return result{Refused, "", fmt.Sprintf("name %s: %s", dns.Name, dns.Err)}
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EAFNOSUPPORT), errors.As(err, &addr):
		return result{NotTried, "", err.Error()}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, context.Canceled), errors.Is(err, unix.ETIMEDOUT),
		errors.As(err, &timeout) && timeout.Timeout():
		return result{TimedOut, "", err.Error()}
	default:
		return result{Refused, "", err.Error()}
	}
}

func tryTCP(ctx context.Context, o options) result {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	begin := time.Now()
	conn, err := dial(ctx, o, "tcp", o.target)
	if err != nil {
		return classify(err)
	}
	defer conn.Close()
	note := fmt.Sprintf("%s from %s in %s", conn.RemoteAddr(), conn.LocalAddr(), time.Since(begin).Round(10*time.Microsecond))
	_ = conn.SetDeadline(begin.Add(o.timeout))
	// From here on it is reached, whatever the peer makes of our line.
	if _, err := io.WriteString(conn, greeting); err != nil {
		return result{Reached, "", note + ", then " + err.Error()}
	}
	text, err := bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadString('\n')
	if err != nil && text == "" {
		note += ", connected without an answer"
	}
	return result{Reached, strings.TrimRight(text, "\r\n"), note}
}

func tryUDP(ctx context.Context, o options) result {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	begin := time.Now()
	conn, err := dial(ctx, o, "udp", o.target)
	if err != nil {
		return classify(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(begin.Add(o.timeout))
	if _, err := io.WriteString(conn, greeting); err != nil {
		return classify(err)
	}
	buf := make([]byte, maxAnswer)
	n, err := conn.Read(buf)
	if err != nil {
		return classify(err)
	}
	note := fmt.Sprintf("%s from %s in %s", conn.RemoteAddr(), conn.LocalAddr(), time.Since(begin).Round(10*time.Microsecond))
	return result{Reached, strings.TrimRight(string(buf[:n]), "\r\n"), note}
}

// hold keeps one connection and exchanges a line each interval. Exit codes: Reached if
// every line was answered until the end, Refused if the connection was refused or
// closed, TimedOut if an answer stayed away.
func hold(ctx context.Context, o options, stdout, stderr io.Writer) int {
	end := func(r result, answered int) int {
		fmt.Fprintf(stdout, "exchanges=%d\n", answered)
		fmt.Fprintf(stderr, "probe: hold %s: %s%s\n", o.target, verdictText(r.code), suffix(r.note))
		return r.code
	}
	dctx, cancel := context.WithTimeout(ctx, o.timeout)
	conn, err := dial(dctx, o, "tcp", o.target)
	cancel()
	if err != nil {
		return end(classify(err), 0)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if o.hold > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.hold)
		defer cancel()
	}
	fmt.Fprintf(stdout, "connected %s from %s\n", conn.RemoteAddr(), conn.LocalAddr())
	tick := time.NewTicker(max(o.interval, time.Millisecond))
	defer tick.Stop()
	answers := bufio.NewReaderSize(conn, 4096)
	for n := 1; ; n++ {
		_ = conn.SetDeadline(time.Now().Add(o.timeout))
		text, err := exchange(conn, answers)
		if err != nil && ctx.Err() != nil {
			return end(result{Reached, "", "ended on request"}, n-1)
		}
		if err != nil {
			return end(classify(err), n-1)
		}
		fmt.Fprintf(stdout, "%d %s\n", n, text)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return end(result{code: Reached}, n)
		}
	}
}

func exchange(conn io.Writer, answers *bufio.Reader) (string, error) {
	if _, err := io.WriteString(conn, greeting); err != nil {
		return "", err
	}
	text, err := answers.ReadString('\n')
	return strings.TrimRight(text, "\r\n"), err
}

package echo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// serve runs a server on one free port of each protocol.
func serve(t *testing.T) (tcp, udp int, stop func()) {
	t.Helper()
	s, err := Listen(Config{Name: "web", Ports: []Port{{"TCP", 0}, {"UDP", 0}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return s.Addrs()[0].(*net.TCPAddr).Port, s.Addrs()[1].(*net.UDPAddr).Port, stop
}

func dial(t *testing.T, network, host string, port int) net.Conn {
	t.Helper()
	c, err := net.Dial(network, net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func TestBothFamiliesAllProtocols(t *testing.T) {
	tcp, udp, _ := serve(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		want := "web " + host + "\n"
		for what, send := range map[string]string{"silence": "", "a line": "hello\n", "an odd start": "GETX", "half a method": "GE"} {
			c := dial(t, "tcp", host, tcp)
			if _, err := io.WriteString(c, send); err != nil {
				t.Fatal(err)
			}
			got, err := bufio.NewReader(c).ReadString('\n')
			if got != want || err != nil {
				t.Errorf("%s %s: %q, %v", host, what, got, err)
			}
		}
		resp, err := http.Get("http://" + net.JoinHostPort(host, fmt.Sprint(tcp)) + "/any/path")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != want || err != nil || resp.StatusCode != 200 {
			t.Errorf("%s http: %q, %v", host, body, err)
		}
		c := dial(t, "udp", host, udp)
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if string(buf[:n]) != want || err != nil {
			t.Errorf("%s udp: %q, %v", host, buf[:n], err)
		}
	}
}

func TestOneAnswerPerLineAndForAnUnendedLast(t *testing.T) {
	tcp, _, _ := serve(t)
	c := dial(t, "tcp", "127.0.0.1", tcp)
	if _, err := io.WriteString(c, "one\ntwo\nthr"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(c)
	if err != nil || strings.Count(string(all), "web 127.0.0.1\n") != 3 {
		t.Errorf("%q, %v", all, err)
	}
}

func TestUDPAnswersFromTheAddressItWasSentTo(t *testing.T) {
	_, udp, _ := serve(t)
	c := dial(t, "udp", "127.0.0.77", udp) // a connected socket takes answers of this address only
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 100)); err != nil {
		t.Error(n, err)
	}
}

func TestStopEndsHeldConnections(t *testing.T) {
	tcp, _, stop := serve(t)
	c := dial(t, "tcp", "127.0.0.1", tcp)
	r := bufio.NewReader(c)
	if _, err := io.WriteString(c, "x\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := r.ReadString('\n'); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}

func TestListenIsAllOrNothing(t *testing.T) {
	tcp, _, _ := serve(t)
	if _, err := Listen(Config{Ports: []Port{{"UDP", 0}, {"TCP", uint16(tcp)}}}); err == nil {
		t.Error("a port that is taken was opened")
	}
	if _, err := Listen(Config{Ports: []Port{{"ICMP", 1}}}); err == nil {
		t.Error("a protocol that is none was opened")
	}
}

package echo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// leaver is a server whose time to linger ends when the test says so.
type leaver struct {
	t        *testing.T
	tcp, udp int
	// ask asks for the end, over ends the time to linger, done has Serve's error.
	ask  func()
	over chan time.Time
	done chan error
}

func newLeaver(t *testing.T, name string) *leaver {
	t.Helper()
	s, err := Listen(Config{Name: name, Ports: []Port{{"TCP", 0}, {"UDP", 0}}})
	if err != nil {
		t.Fatal(err)
	}
	l := &leaver{
		t: t, tcp: s.Addrs()[0].(*net.TCPAddr).Port, udp: s.Addrs()[1].(*net.UDPAddr).Port,
		over: make(chan time.Time), done: make(chan error, 1),
	}
	s.after = func(time.Duration) <-chan time.Time { return l.over }
	ctx, cancel := context.WithCancel(t.Context())
	l.ask = cancel
	go func() { l.done <- s.Serve(ctx) }()
	t.Cleanup(l.end)
	return l
}

// end lets the server go, and waits for it.
func (l *leaver) end() {
	l.ask()
	select {
	case l.over <- time.Time{}:
	case err := <-l.done:
		l.done <- err
	}
	if err := <-l.done; err != nil {
		l.t.Error(err)
	}
	l.done <- nil
}

func (l *leaver) url() string { return fmt.Sprintf("http://127.0.0.1:%d/", l.tcp) }

// post sends a request that no client repeats by itself.
func post(client *http.Client, url string) (*http.Response, error) {
	resp, err := client.Post(url, "text/plain", strings.NewReader("order"))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s", resp.Status)
	}
	return resp, nil
}

// untilLeaving returns when the server's answers ask for the end of their connections.
func (l *leaver) untilLeaving() {
	l.t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	for l.t.Context().Err() == nil {
		resp, err := post(client, l.url())
		if err != nil {
			l.t.Fatalf("while it lingers: %v", err)
		}
		if resp.Close {
			return
		}
	}
}

func TestWhoeverCallsWhileItLingersIsAnswered(t *testing.T) {
	l := newLeaver(t, "web")
	held := dial(t, "tcp", "127.0.0.1", l.tcp)
	reader := bufio.NewReader(held)
	idle := &http.Client{Transport: &http.Transport{}}
	if resp, err := post(idle, l.url()); err != nil || resp.Close {
		t.Fatalf("before the end: %v, %+v", err, resp)
	}
	l.ask()
	l.untilLeaving()
	if resp, err := post(idle, l.url()); err != nil || !resp.Close {
		t.Errorf("on a connection from before: %v, %+v", err, resp)
	}
	for what, c := range map[string]net.Conn{"a new connection": dial(t, "tcp", "127.0.0.1", l.tcp), "a datagram": dial(t, "udp", "127.0.0.1", l.udp)} {
		if _, err := io.WriteString(c, "x\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(c).ReadString('\n'); got != "web 127.0.0.1\n" || err != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	if _, err := io.WriteString(held, "x\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := reader.ReadString('\n'); got != "web 127.0.0.1\n" || err != nil {
		t.Errorf("a held connection: %q, %v", got, err)
	}
	l.end()
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", l.tcp)); err == nil {
		c.Close()
		t.Error("it listens after its end")
	}
}

// TestHTTP2IsSentAway: a client with one lasting connection opens another, and no request fails.
func TestHTTP2IsSentAway(t *testing.T) {
	l := newLeaver(t, "web")
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	for i := range 20 {
		if i == 10 {
			l.ask()
			l.untilLeaving()
		}
		if resp, err := post(client, l.url()); err != nil || resp.ProtoMajor != 2 {
			t.Fatalf("request %d: %v, %+v", i, err, resp)
		}
	}
}

// TestAReplacementLosesNoRequest: clients call the old Pod until they hear of the new one, which is after the old one was
// told to end.
func TestAReplacementLosesNoRequest(t *testing.T) {
	before, after := newLeaver(t, "before"), newLeaver(t, "after")
	var endpoint atomic.Pointer[leaver]
	endpoint.Store(before)
	transport := &http.Transport{MaxIdleConnsPerHost: 8}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	const workers, calls = 8, 50
	var asked, moved, all sync.WaitGroup
	asked.Add(workers)
	moved.Add(workers)
	over := make(chan struct{})
	for range workers {
		all.Go(func() {
			call := func(l *leaver) {
				if _, err := post(client, l.url()); err != nil {
					t.Errorf("a request was lost: %v", err)
				}
			}
			for range calls {
				call(before)
			}
			asked.Done()
			for endpoint.Load() == before { // before it hears of the change
				call(before)
			}
			call(after)
			moved.Done()
			for {
				select {
				case <-over:
					return
				default:
					call(after)
				}
			}
		})
	}
	asked.Wait()
	before.ask()
	before.untilLeaving()
	endpoint.Store(after)
	moved.Wait()
	before.end()
	close(over)
	all.Wait()
}

func TestLingerFor(t *testing.T) {
	for grace, want := range map[time.Duration]time.Duration{
		30 * time.Second: 2 * time.Second, 4 * time.Second: 2 * time.Second, time.Second: 500 * time.Millisecond, 0: 0,
	} {
		if got := LingerFor(grace); got != want {
			t.Errorf("grace period %s: %s, want %s", grace, got, want)
		}
	}
}

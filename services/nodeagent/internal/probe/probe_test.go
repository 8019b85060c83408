package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/services/nodeagent/internal/echo"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

func echoPort(t *testing.T) string {
	t.Helper()
	s, err := echo.Listen(echo.Config{Name: "web", Ports: []echo.Port{{Protocol: "TCP"}, {Protocol: "UDP"}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Log(err)
		}
	})
	_, port, _ := net.SplitHostPort(s.Addrs()[0].String())
	return port
}

func run(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = Main(t.Context(), args, &o, &e)
	return code, o.String(), e.String()
}

func TestToolExitCodes(t *testing.T) {
	port := echoPort(t)
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, c := range []struct {
		args string
		code int
		out  string
	}{
		{"tcp 127.0.0.1:" + port, Reached, "web 127.0.0.1\n"},
		{"tcp [::1]:" + port, Reached, "web ::1\n"},
		{"tcp 127.0.0.1:" + port + " --from 127.0.0.9", Reached, "web 127.0.0.9\n"},
		{"--timeout 1s http 127.0.0.1:" + port + "/healthz", Reached, "web 127.0.0.1\n"},
		{"tcp 127.0.0.1:1", Refused, ""},
		{"udp 127.0.0.1:1", Refused, ""},
		{"udp [::1]:1", Refused, ""},
		{"http http://[::1]:1/", Refused, ""},
		{"hold 127.0.0.1:1", Refused, "exchanges=0\n"},
		{"udp --timeout 50ms " + silent.LocalAddr().String(), TimedOut, ""},
		{"tcp 127.0.0.1:" + port + " --count 3 --interval 1ms", Reached, strings.Repeat("reached: web 127.0.0.1\n", 3) + "attempts=3 reached=3 refused=0 timed-out=0 not-tried=0\n"},
		{"tcp", Usage, ""}, {"nonsense x", Usage, ""}, {"tcp a:1 b:2", Usage, ""}, {"tcp a:1 --timeout x", Usage, ""},
		{"tcp 127.0.0.1:1 --count 0", Usage, ""},
	} {
		code, out, errOut := run(t, strings.Fields(c.args)...)
		if code != c.code || out != c.out {
			t.Errorf("%s: exit %d, %q, %q; want %d, %q", c.args, code, out, errOut, c.code, c.out)
		}
	}
}

func TestHold(t *testing.T) {
	code, out, _ := run(t, "hold", "127.0.0.1:"+echoPort(t), "--interval", "1ms", "--for", "30ms")
	if code != Reached || !strings.Contains(out, "\n1 web 127.0.0.1\n") || strings.Contains(out, "exchanges=0") {
		t.Errorf("exit %d: %s", code, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // answers once, then says nothing; closes the next at once
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			_, _ = io.WriteString(c, "once\n")
		}
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
	}()
	if code, out, _ := run(t, "hold", l.Addr().String(), "--interval", "1ms", "--timeout", "100ms"); code == Reached || !strings.Contains(out, "exchanges=1") {
		t.Errorf("a connection cut in silence: exit %d: %s", code, out)
	}
}

func TestJudge(t *testing.T) {
	p := podspec.Probe{SuccessThreshold: 2, FailureThreshold: 3}
	for _, c := range []struct {
		kind    Kind
		answers string // + and -
		passing string // after each
		failed  bool
	}{
		{Readiness, "++-+--+---", "0111111110", true},
		{Readiness, "+-+-", "0000", false},
		{Liveness, "--+--", "11111", false},
		{Liveness, "---", "110", true},
		{Startup, "--++", "0001", false},
	} {
		j := NewJudge(c.kind, p)
		var got strings.Builder
		for _, a := range c.answers {
			j = j.Observe(a == '+')
			got.WriteByte("01"[b2i(j.Passing())])
		}
		if got.String() != c.passing || j.Failed() != c.failed {
			t.Errorf("%s %s: %s failed=%v, want %s %v", c.kind, c.answers, got.String(), j.Failed(), c.passing, c.failed)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestRunKeepsKubernetesTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		p := podspec.Probe{InitialDelay: 5 * time.Second, Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 2}
		var asked []time.Duration
		var reports []Report
		Run(t.Context(), Liveness, p, begin, func(context.Context) Answer {
			asked = append(asked, time.Since(begin))
			return Answer{OK: len(asked) < 3}
		}, func(r Report) { reports = append(reports, r) })
		for i, want := range []time.Duration{5, 15, 25, 35} {
			if i >= len(asked) || asked[i] != want*time.Second {
				t.Errorf("asked at %v", asked)
			}
		}
		if len(asked) != 4 || len(reports) != 1 || reports[0].Passing {
			t.Errorf("asked %v, reports %+v", asked, reports)
		}
	})
}

func TestAskHTTPAndTCP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			if r.Header.Get("X-A") != "b" || r.Host != "named.example" || r.UserAgent() != userAgent {
				w.WriteHeader(400)
			}
		case "/away":
			http.Redirect(w, r, "http://other.example/", http.StatusFound)
		case "/here":
			http.Redirect(w, r, "/bad", http.StatusFound)
		default:
			w.WriteHeader(500)
		}
	}))
	defer server.Close()
	addr := netip.MustParseAddrPort(server.Listener.Addr().String())
	target := Target{PodIP: addr.Addr(), Container: podspec.Container{Ports: []podspec.Port{{Name: "web", Number: addr.Port()}}}}
	get := func(path string) podspec.Handler {
		return podspec.Handler{HTTP: &podspec.HTTPGet{Scheme: "HTTP", Port: "web", Path: path, Headers: []podspec.Header{{Name: "X-A", Value: "b"}, {Name: "Host", Value: "named.example"}}}}
	}
	for name, c := range map[string]struct {
		h  podspec.Handler
		ok bool
	}{
		"ok":              {get("/ok"), true},
		"error":           {get("/bad"), false},
		"redirect away":   {get("/away"), true},
		"tcp":             {podspec.Handler{TCP: &podspec.TCPSocket{Port: "web"}}, true},
		"tcp closed":      {podspec.Handler{TCP: &podspec.TCPSocket{Port: "1"}}, false},
		"tcp unnamed":     {podspec.Handler{TCP: &podspec.TCPSocket{Port: "nope"}}, false},
		"grpc of another": {podspec.Handler{GRPC: &podspec.GRPC{Port: addr.Port()}}, false},
		"nothing":         {podspec.Handler{}, false},
	} {
		if a := Ask(t.Context(), c.h, target); a.OK != c.ok {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestAskGRPCSpeaksTheHealthProtocol(t *testing.T) {
	status := byte(1)
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/grpc.health.v1.Health/Check" || string(body[5:]) != "\x0a\x03svc" {
			t.Errorf("%s %q", r.URL.Path, body)
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, 2), 0x08, status))
		w.Header().Set("Grpc-Status", "0")
	})}
	server.Protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	addr := netip.MustParseAddrPort(l.Addr().String())
	h := podspec.Handler{GRPC: &podspec.GRPC{Port: addr.Port(), Service: "svc"}}
	if a := Ask(t.Context(), h, Target{PodIP: addr.Addr()}); !a.OK {
		t.Errorf("serving: %+v", a)
	}
	status = 2
	if a := Ask(t.Context(), h, Target{PodIP: addr.Addr()}); a.OK {
		t.Errorf("not serving: %+v", a)
	}
}

func FuzzServingStatus(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := servingStatus(b); err != nil && v != 0 {
			t.Errorf("%d with %v", v, err)
		}
	})
}

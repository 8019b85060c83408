package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"podwire.dev/internal/daemon"
)

func run(t *testing.T, args []string, p daemon.Program[config]) (status int, stdout, stderr string) {
	t.Helper()
	p.Service = "ipam"
	var out, errOut bytes.Buffer
	status = daemon.MainWith[config](args, p, &out, &errOut)
	return status, out.String(), errOut.String()
}

func TestMainCommandLine(t *testing.T) {
	t.Parallel()
	good := write(t, "socket: /s\n")
	healthy := daemon.Program[config]{Healthcheck: func(_ context.Context, service string, cfg daemon.Common) error {
		if service != "ipam" || cfg.Socket != "/s" {
			return errors.New("wrong service or configuration")
		}
		return nil
	}}
	ill := daemon.Program[config]{Healthcheck: func(context.Context, string, daemon.Common) error { return errors.New("NOT_SERVING") }}
	for _, tt := range []struct {
		args   []string
		p      daemon.Program[config]
		status int
		want   string
	}{
		{[]string{"version"}, healthy, 0, "podwire ipam "},
		{[]string{"-h"}, healthy, 0, "usage: ipam --config FILE"},
		{nil, healthy, 2, "--config FILE is required"},
		{[]string{"--config", good, "extra"}, healthy, 2, `unexpected argument "extra"`},
		{[]string{"--confg", good}, healthy, 2, "confg"},
		{[]string{"--config", write(t, "x: y\n")}, healthy, 2, "not a known key"},
		{[]string{"healthcheck", "--config", good}, healthy, 0, "ipam: SERVING"},
		{[]string{"healthcheck", "--config", good}, ill, 1, "ipam: NOT_SERVING"},
	} {
		status, stdout, stderr := run(t, tt.args, tt.p)
		if status != tt.status || !strings.Contains(stdout+stderr, tt.want) {
			t.Errorf("%q: status %d, %q %q; want %d, %q", tt.args, status, stdout, stderr, tt.status, tt.want)
		}
	}
}

func TestMainEnrolsThenRunsUntilSignal(t *testing.T) {
	path := write(t, "socket: /s\nidentity: /i\nlog: {format: json}\njoin: {target: t, token: k, caFile: c}\n")
	var j journal
	status, _, stderr := run(t, []string{"--config", path}, daemon.Program[config]{
		Enrol: func(_ context.Context, _ *slog.Logger, cfg daemon.Common) error {
			j.note("enrol " + cfg.Join.Target)
			return nil
		},
		Run: func(_ context.Context, d *daemon.Daemon, cfg config) error {
			j.note("run " + cfg.Identity)
			d.OnStop(daemon.StageStore, "store", j.noting("stop"))
			d.Ready()
			// The test's own process; Main has taken the signal over.
			return syscall.Kill(syscall.Getpid(), syscall.SIGTERM)
		},
	})
	if status != 0 {
		t.Errorf("status %d, %s", status, stderr)
	}
	if got := strings.Join(j.lines, ", "); got != "enrol t, run /i, stop" {
		t.Errorf("got %s", got)
	}
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "{") || !strings.Contains(line, `"service":"ipam"`) {
			t.Errorf("log line %q", line)
		}
	}
}

func TestMainFailures(t *testing.T) {
	t.Parallel()
	path := write(t, "socket: /s\nidentity: /i\njoin: {target: t, token: k, caFile: c}\n")
	joined := func(context.Context, *slog.Logger, daemon.Common) error { return nil }
	for _, tt := range []struct {
		what string
		p    daemon.Program[config]
	}{
		{"boom while joining", daemon.Program[config]{
			Enrol: func(context.Context, *slog.Logger, daemon.Common) error { return errors.New("boom while joining") },
			Run:   func(context.Context, *daemon.Daemon, config) error { t.Error("must not run"); return nil },
		}},
		{"boom while starting", daemon.Program[config]{
			Enrol: joined,
			Run:   func(context.Context, *daemon.Daemon, config) error { return errors.New("boom while starting") },
		}},
	} {
		if status, _, stderr := run(t, []string{"--config", path}, tt.p); status != 1 || strings.Count(stderr, tt.what) != 1 {
			t.Errorf("%s: status %d, log %q", tt.what, status, stderr)
		}
	}
}

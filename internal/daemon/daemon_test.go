package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/telemetry"
)

// journal is what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) noting(line string) func(context.Context) error {
	return func(context.Context) error { j.note(line); return nil }
}

func (j *journal) SetServing()    { j.note("SERVING") }
func (j *journal) SetNotServing() { j.note("NOT_SERVING") }

func newDaemon(t *testing.T) (*daemon.Daemon, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	return daemon.New(daemon.Options{Name: "test", Log: slog.New(slog.NewTextHandler(&log, nil))}), &log
}

func TestStopOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, _ := newDaemon(t)
		var j journal
		err := d.Run(t.Context(), func(ctx context.Context) error {
			d.OnStop(daemon.StageStore, "store", j.noting("store closed"))
			d.OnStop(daemon.StageServer, "grpc", func(context.Context) error {
				if ctx.Err() != nil {
					t.Error("the feed has to live until the calls in flight ended")
				}
				j.note("server stopped")
				return nil
			})
			d.OnStop(daemon.StagePush, "hub", j.noting("streams closed"))
			d.OnStop(daemon.StagePush, "second hub", j.noting("second streams closed"))
			d.AddHealth(&j)
			d.Go("feed", func(ctx context.Context) error {
				<-ctx.Done()
				j.note("feed ended")
				return ctx.Err()
			})
			d.Ready()
			d.Ready()
			d.Go("stopper", func(context.Context) error { d.Stop(); return nil })
			return nil
		})
		if err != nil {
			t.Errorf("a stop that was asked for: %v", err)
		}
		want := []string{
			"NOT_SERVING", "SERVING", "NOT_SERVING", "second streams closed", "streams closed",
			"server stopped", "feed ended", "store closed",
		}
		if !slices.Equal(j.lines, want) {
			t.Errorf("got  %q\nwant %q", j.lines, want)
		}
		// synctest fails if a goroutine is left.
	})
}

func TestSignalEndsTheProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, wiring := range []string{"done", "under way"} {
			d, _ := newDaemon(t)
			ctx, signal := context.WithCancel(t.Context())
			result := make(chan error)
			go func() {
				result <- d.Run(ctx, func(ctx context.Context) error {
					if wiring == "done" {
						return nil
					}
					<-ctx.Done()
					return ctx.Err()
				})
			}()
			synctest.Wait()
			signal()
			if err := <-result; err != nil {
				t.Errorf("wiring %s: %v", wiring, err)
			}
		}
	})
}

func TestFailuresEndTheProcessLoudly(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for _, tt := range []struct {
		what string
		wire func(stuck context.Context, d *daemon.Daemon) error
		want string
	}{
		{"an error while wiring", func(context.Context, *daemon.Daemon) error { return boom }, "boom"},
		{"a panic while wiring", func(context.Context, *daemon.Daemon) error { panic("boom") }, "start panicked: boom"},
		{"an error of a goroutine", func(_ context.Context, d *daemon.Daemon) error {
			d.Go("feed", func(context.Context) error { return boom })
			return nil
		}, "feed: boom"},
		{"a panic of a goroutine", func(_ context.Context, d *daemon.Daemon) error {
			d.Go("feed", func(context.Context) error { panic("boom") })
			return nil
		}, "feed panicked: boom"},
		{"a goroutine's own cancelled context", func(_ context.Context, d *daemon.Daemon) error {
			d.Go("feed", func(context.Context) error { return context.Canceled })
			return nil
		}, "feed: context canceled"},
		{"an error during the stop", func(_ context.Context, d *daemon.Daemon) error {
			d.Go("feed", func(ctx context.Context) error { <-ctx.Done(); return boom })
			d.Stop()
			return nil
		}, "feed: boom"},
		{"a goroutine that does not end", func(stuck context.Context, d *daemon.Daemon) error {
			d.Go("sleeper", func(context.Context) error { <-stuck.Done(); return nil })
			d.Stop()
			return nil
		}, "did not end within 5s of being told to: sleeper"},
		{"a start that does not end", func(stuck context.Context, d *daemon.Daemon) error {
			d.Stop()
			<-stuck.Done()
			return nil
		}, "start did not end"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, log := newDaemon(t)
				stuck, release := context.WithCancel(t.Context())
				defer release()
				var j journal
				d.OnStop(daemon.StageStore, "store", j.noting("store closed"))
				err := d.Run(t.Context(), func(context.Context) error { return tt.wire(stuck, d) })
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("got %v, want %q", err, tt.want)
				}
				if !strings.Contains(log.String(), "level=ERROR") {
					t.Errorf("nothing is logged:\n%s", log)
				}
				if !slices.Equal(j.lines, []string{"store closed"}) {
					t.Error("a failure stops in order too")
				}
			})
		})
	}
}

func TestHooksAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, log := newDaemon(t)
		var j journal
		err := d.Run(t.Context(), func(context.Context) error {
			d.OnStop(daemon.StageServer, "grpc", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			d.OnStop(daemon.StageFeed, "panics", func(context.Context) error { panic("boom") })
			d.OnStop(daemon.StageStore, "store", j.noting("store closed"))
			d.Stop()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if !slices.Equal(j.lines, []string{"store closed"}) {
			t.Error("later stages have to run")
		}
		for _, want := range []string{"hook=grpc", "hook=panics"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("log does not say %q:\n%s", want, log)
			}
		}
	})
}

func TestHealthThatComesLate(t *testing.T) {
	t.Parallel()
	d, _ := newDaemon(t)
	d.Ready()
	var j journal
	d.AddHealth(&j)
	d.Stop()
	d.AddHealth(&j)
	if !slices.Equal(j.lines, []string{"SERVING", "NOT_SERVING"}) {
		t.Errorf("got %q", j.lines)
	}
}

func TestGoroutinesCarryTelemetry(t *testing.T) {
	t.Parallel()
	tele, err := telemetry.New(t.Context(), telemetry.Process{Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	d := daemon.New(daemon.Options{Name: "test", Telemetry: tele})
	err = d.Run(t.Context(), func(ctx context.Context) error {
		if telemetry.FromContext(ctx) != tele {
			t.Error("wiring has no telemetry")
		}
		d.Go("feed", func(ctx context.Context) error {
			if telemetry.FromContext(ctx) != tele {
				t.Error("a goroutine has no telemetry")
			}
			d.Stop()
			return nil
		})
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

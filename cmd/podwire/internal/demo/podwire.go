package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// podwire runs commands against one instance.
type podwire struct {
	bin string
	// flags lead there.
	flags []string
}

// answer is what a command came to.
type answer struct {
	out, err string
	code     int
	took     time.Duration
}

// text is everything that was printed, on one line.
func (a answer) text() string {
	return strings.Join(strings.Fields(strings.ReplaceAll(strings.TrimSpace(a.out+" "+a.err), "\n", " | ")), " ")
}

// stopWait is how long an interrupted command gets to end.
const stopWait = 5 * time.Second

func (p podwire) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.bin, append(slices.Clone(p.flags), args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = stopWait
	return cmd
}

// run runs one command to its end. A command that could not be run has code -1.
func (p podwire) run(ctx context.Context, stdin string, args ...string) answer {
	cmd := p.command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	began := time.Now()
	err := cmd.Run()
	a := answer{out: out.String(), err: errOut.String(), took: time.Since(began)}
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		a.code = failed.ExitCode()
	case err != nil:
		a.code, a.err = -1, err.Error()
	}
	return a
}

// must runs a command that has to succeed.
func (p podwire) must(ctx context.Context, stdin string, args ...string) (string, error) {
	a := p.run(ctx, stdin, args...)
	if a.code != 0 {
		return "", fmt.Errorf("podwire %s: exit %d: %s", strings.Join(args, " "), a.code, strings.TrimSpace(a.err+a.out))
	}
	return a.out, nil
}

// object reads one object as JSON.
func (p podwire) object(ctx context.Context, into any, args ...string) error {
	out, err := p.must(ctx, "", append(append([]string{"get"}, args...), "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("podwire get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// running is a command that goes on beside the checks.
type running struct {
	done chan answer
	stop context.CancelFunc
}

// start runs a command in the background; ready gets each line that it prints.
func (p podwire) start(ctx context.Context, ready func(line string), args ...string) *running {
	ctx, cancel := context.WithCancel(ctx)
	r := &running{done: make(chan answer, 1), stop: cancel}
	cmd := p.command(ctx, args...)
	var errOut bytes.Buffer
	lines := &lineWriter{line: ready}
	cmd.Stdout, cmd.Stderr = lines, &errOut
	go func() { // ends with the command, which ctx ends
		defer cancel()
		err := cmd.Run()
		a := answer{out: lines.all.String(), err: errOut.String()}
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			a.code = failed.ExitCode()
		} else if err != nil {
			a.code, a.err = -1, err.Error()
		}
		r.done <- a
	}()
	return r
}

// wait is the end of the command.
func (r *running) wait(ctx context.Context) answer {
	select {
	case a := <-r.done:
		return a
	case <-ctx.Done():
		r.stop()
		return <-r.done
	}
}

// lineWriter passes whole lines on.
type lineWriter struct {
	all, part bytes.Buffer
	line      func(string)
}

func (w *lineWriter) Write(b []byte) (int, error) {
	w.all.Write(b)
	w.part.Write(b)
	for {
		text, err := w.part.ReadString('\n')
		if errors.Is(err, io.EOF) {
			w.part.WriteString(text)
			return len(b), nil
		}
		w.line(strings.TrimSuffix(text, "\n"))
	}
}

// traffic is a stream of requests, each on a connection of its own, until it is stopped.
type traffic struct {
	text string
	run  *running
	// good says how the line of a request begins that came to what it should.
	good []string

	mu            sync.Mutex
	served, other int
	lastBad       string
	news          chan struct{}
}

// endless is more requests than any check waits for.
const endless = "1000000"

// traffic begins to send what probe is told; good says how the lines of its successes begin.
func (d *demo) traffic(ctx context.Context, from place, good []string, what ...string) *traffic {
	t := &traffic{text: from.name + " -> " + strings.Join(what, " "), good: good, news: make(chan struct{}, 1)}
	args := append(append([]string{"exec"}, from.args...), "--", "probe")
	args = append(append(args, what...), "--count", endless, "--interval", "20ms")
	t.run = d.start(ctx, t.line, args...)
	return t
}

// line takes one line of probe's output in.
func (t *traffic) line(text string) {
	if strings.HasPrefix(text, "attempts=") {
		return
	}
	t.mu.Lock()
	if slices.ContainsFunc(t.good, func(begin string) bool { return strings.HasPrefix(text, begin) }) {
		t.served++
	} else {
		t.other++
		t.lastBad = "; the last one: " + text
	}
	t.mu.Unlock()
	select {
	case t.news <- struct{}{}:
	default:
	}
}

func (t *traffic) count() (good, bad int, lastBad string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.served, t.other, t.lastBad
}

// more waits for n more requests to come to something.
func (t *traffic) more(ctx context.Context, n int) error {
	good, bad, _ := t.count()
	for want := good + bad + n; good+bad < want; good, bad, _ = t.count() {
		select {
		case <-t.news:
		case a := <-t.run.done:
			t.run.done <- a
			return fmt.Errorf("%s: ended: %s", t.text, lastWords(a))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// load is the part of a pod that sends requests on several flows, and tells on a unix socket what they came to. It does
// not depend on any agent while it runs: what an agent does to its traffic is what it counts.
type load struct {
	// Socket is the path of the socket.
	Socket string
	Flows  []flow
}

// flow is one stream of requests.
type flow struct {
	Protocol, Target string
	// Held makes all requests on one connection, or from one UDP socket; otherwise each has its own.
	Held bool `json:",omitempty"`
	// Port is the source port of a held UDP socket; 0 for any.
	Port int `json:",omitempty"`
	// Every is the time between two requests, Timeout how long each waits for its answer.
	Every, Timeout time.Duration
}

// counts are what the requests of a flow came to.
type counts struct {
	Answered, Failed int
	// Slowest is the longest time until an answer.
	Slowest time.Duration
	// Last is what the request came to that ended last, LastFailure the last one that failed.
	Last, LastFailure reply
	// First is when each pod first answered.
	First map[string]time.Time
}

func (c counts) tries() int { return c.Answered + c.Failed }

// query asks for the counts after Each flow had so many more requests come to something.
type query struct{ Each int }

// tally collects.
type tally struct {
	mu    sync.Mutex
	news  *sync.Cond
	ended bool
	flows []counts
}

func (l load) run(ctx context.Context) error {
	_ = os.Remove(l.Socket)
	s, err := net.Listen("unix", l.Socket)
	if err != nil {
		return err
	}
	t := &tally{flows: make([]counts, len(l.Flows))}
	t.news = sync.NewCond(&t.mu)
	for n := range t.flows {
		t.flows[n].First = map[string]time.Time{}
	}
	context.AfterFunc(ctx, func() {
		_ = s.Close()
		t.mu.Lock()
		t.ended = true
		t.mu.Unlock()
		t.news.Broadcast()
	})
	var all sync.WaitGroup
	for n, f := range l.Flows {
		all.Go(func() { f.run(ctx, func(r reply, took time.Duration) { t.add(n, r, took) }) })
	}
	for {
		c, err := s.Accept()
		if err != nil {
			break
		}
		all.Go(func() {
			defer c.Close()
			var q query
			if json.NewDecoder(c).Decode(&q) == nil {
				_ = json.NewEncoder(c).Encode(t.after(q.Each))
			}
		})
	}
	all.Wait()
	return nil
}

func (t *tally) add(n int, r reply, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &t.flows[n]
	c.Last = r
	if r.reached() {
		c.Answered++
		c.Slowest = max(c.Slowest, took)
		if _, ok := c.First[r.who()]; !ok {
			c.First[r.who()] = time.Now()
		}
	} else {
		c.Failed++
		c.LastFailure = r
	}
	t.news.Broadcast()
}

// after waits until every flow had that many more requests.
func (t *tally) after(each int) []counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	goals := make([]int, len(t.flows))
	for n, c := range t.flows {
		goals[n] = c.tries() + each
	}
	for n := range t.flows {
		for !t.ended && t.flows[n].tries() < goals[n] {
			t.news.Wait()
		}
	}
	out := slices.Clone(t.flows)
	for n := range out {
		out[n].First = maps.Clone(out[n].First)
	}
	return out
}

// waiting bounds the requests of one flow that wait for an answer.
const waiting = 64

// run sends until ctx ends. A slow answer does not slow down the requests after it, but on a held connection.
func (f flow) run(ctx context.Context, told func(reply, time.Duration)) {
	tick := time.NewTicker(f.Every)
	defer tick.Stop()
	if f.Held {
		f.hold(ctx, tick.C, told)
		return
	}
	slots := make(chan struct{}, waiting)
	var all sync.WaitGroup
	defer all.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			r := ask(ctx, question{f.Protocol, f.Target}, f.Timeout)
			if ctx.Err() == nil {
				told(r, time.Since(began))
			}
		})
	}
}

// hold keeps one connection, and makes another where it broke: that was a failed request.
func (f flow) hold(ctx context.Context, tick <-chan time.Time, told func(reply, time.Duration)) {
	var c net.Conn
	var answers *bufio.Reader
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		began := time.Now()
		var r reply
		if c == nil {
			d := net.Dialer{Timeout: f.Timeout}
			if f.Protocol == "udp" {
				d.LocalAddr = &net.UDPAddr{Port: f.Port}
			}
			var err error
			if c, err = d.DialContext(ctx, f.Protocol, f.Target); err != nil {
				c, r = nil, failure(err)
			} else {
				answers = bufio.NewReader(c)
			}
		}
		if c != nil {
			_ = c.SetDeadline(began.Add(f.Timeout))
			r = exchange(c, answers)
		}
		if ctx.Err() != nil {
			return
		}
		told(r, time.Since(began))
		if c != nil && !r.reached() && f.Protocol != "udp" {
			_ = c.Close()
			c = nil
		}
	}
}

// sender is a pod that plays a load.
type sender struct {
	t    *testing.T
	name string
	load load
}

// send starts a pod of that name that sends on these flows, and waits until each had an outcome.
func (i *instance) send(t *testing.T, ns, name, node, labels string, flows ...flow) *sender {
	t.Helper()
	for n := range flows {
		if flows[n].Every == 0 {
			flows[n].Every = 20 * time.Millisecond
		}
		if flows[n].Timeout == 0 {
			flows[n].Timeout = 5 * time.Second
		}
	}
	s := &sender{t: t, name: name, load: load{Socket: filepath.Join(t.TempDir(), "s"), Flows: flows}}
	i.apply(t, partPod(t, ns, name, node, labels, part{Load: &s.load}))
	await(t, name+" sends", func() error {
		_, err := os.Stat(s.load.Socket)
		return err
	})
	s.more(1)
	return s
}

// more waits until every flow had n more requests come to something, and returns all counts.
func (s *sender) more(n int) []counts {
	s.t.Helper()
	c, err := net.Dial("unix", s.load.Socket)
	if err != nil {
		s.t.Fatalf("%s: %v", s.name, err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	var out []counts
	if err := json.NewEncoder(c).Encode(query{n}); err == nil {
		err = json.NewDecoder(c).Decode(&out)
		if err == nil {
			return out
		}
	}
	s.t.Fatalf("%s does not send %d more requests: %v", s.name, n, err)
	return nil
}

// until waits for requests until what they came to is as wanted.
func (s *sender) until(what string, ok func([]counts) bool) []counts {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		all := s.more(1)
		if ok(all) {
			return all
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not %s: %+v", s.name, what, all)
		}
	}
}

// toNobody are the flows that must never be answered; all others must always be.
type toNobody map[int]bool

// judge counts what was lost.
func (s *sender) judge(forbidden toNobody) {
	s.t.Helper()
	for n, c := range s.more(1) {
		f := s.load.Flows[n]
		text := fmt.Sprintf("%s -> %s %s%s: %d answered, %d not, slowest %s", s.name, f.Protocol, f.Target,
			map[bool]string{true: " (held)"}[f.Held], c.Answered, c.Failed, c.Slowest.Round(time.Millisecond))
		switch {
		case forbidden[n] && c.Answered > 0:
			s.t.Errorf("%s: forbidden, and answered", text)
		case forbidden[n]:
			s.t.Logf("%s: forbidden", text)
		case c.Failed > 0:
			s.t.Errorf("%s; the last failure: %s", text, c.LastFailure)
		default:
			s.t.Log(text)
		}
	}
}

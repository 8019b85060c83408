package heartbeat_test

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/backoff"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/heartbeat"
)

const every = 200 * time.Millisecond

// answer is the leader's target.
type answer string

func (a answer) GetLeaderTarget() string { return string(a) }

// replica answers, or is mute, or cannot be reached. It is of one test's bubble.
type replica struct {
	mu     sync.Mutex
	away   error
	mute   bool
	leader answer
	opened int
	beats  []int64
}

func (r *replica) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *replica) count() (opened, beats int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened, len(r.beats)
}

func open(ctx context.Context, r *replica) (heartbeat.Stream[int64, answer], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away != nil {
		return nil, r.away
	}
	r.opened++
	return &stream{ctx: ctx, replica: r, answers: make(chan answer, 1)}, nil
}

type stream struct {
	ctx     context.Context
	replica *replica
	answers chan answer
}

func (s *stream) Send(n int64) error {
	s.replica.mu.Lock()
	s.replica.beats = append(s.replica.beats, n)
	mute, a := s.replica.mute, s.replica.leader
	s.replica.mu.Unlock()
	if mute {
		return nil
	}
	select {
	case s.answers <- a:
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

func (s *stream) Recv() (answer, error) {
	select {
	case a := <-s.answers:
		return a, nil
	case <-s.ctx.Done():
		return "", errs.WrapAs(errs.Unavailable, s.ctx.Err(), "stream")
	}
}

type closer struct{ closed *int }

func (c closer) Close() error { *c.closed++; return nil }

type heart = heartbeat.Heart[*replica, int64, answer]

func newHeart(r *replica) *heart {
	return &heart{
		Name: "somebody", Service: r, Open: open, Every: every, Beat: func(n int64) int64 { return n }, Heard: func(answer) {}, Log: slog.New(slog.DiscardHandler),
	}
}

// beating runs a heart for as long as during takes.
func beating(t *testing.T, h *heart, during func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Errorf("ended with: %v", err)
		}
	})
	during()
	cancel()
	run.Wait()
}

// elapse lets time pass in a bubble.
func elapse(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestTheElectedReplicaIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leader, other := &replica{}, &replica{leader: "leader:7443"}
		dialled, closed, heard, returned := "", 0, 0, 0
		h := newHeart(other)
		h.Dial = func(target string) (*replica, io.Closer, error) {
			dialled = target
			return leader, closer{&closed}, nil
		}
		h.Heard, h.Returned = func(answer) { heard++ }, func() { returned++ }
		beating(t, h, func() {
			elapse(10*every + every/2)
			opened, beats := leader.count()
			if dialled != "leader:7443" || opened != 1 || beats != 11 || leader.beats[10] != 11 {
				t.Errorf("dialled %q, %d streams, beats %v", dialled, opened, leader.beats)
			}
			if heard != 11 || returned != 1 {
				t.Errorf("heard %d times and returned %d times: who does not lead has nothing to say", heard, returned)
			}
		})
		if closed != 1 {
			t.Errorf("closed %d times", closed)
		}
	})
}

func TestNewsIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, news := &replica{}, make(chan struct{}, 1)
		h := newHeart(r)
		h.News = news
		beating(t, h, func() {
			elapse(every / 4)
			news <- struct{}{}
			elapse(every / 4)
			if _, beats := r.count(); beats != 2 {
				t.Errorf("%d beats before the second is due", beats)
			}
		})
	})
}

func TestAStreamWithoutAnswersIsOpenedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &replica{mute: true}
		beating(t, newHeart(r), func() {
			elapse(heartbeat.Deaf + backoff.Last + time.Second)
			if opened, _ := r.count(); opened < 2 {
				t.Errorf("%d streams: nobody noticed that there are no answers", opened)
			}
		})
	})
}

func TestBeatsComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &replica{away: errs.New(errs.Unavailable, "away")}
		returned := 0
		h := newHeart(r)
		h.Returned = func() { returned++ }
		beating(t, h, func() {
			elapse(time.Minute)
			r.set(func() { r.away = nil })
			elapse(backoff.Last + time.Second)
			if opened, beats := r.count(); opened != 1 || beats == 0 || returned != 1 {
				t.Errorf("%d streams, %d beats, returned %d times", opened, beats, returned)
			}
			r.set(func() { r.mute = true })
			elapse(2 * heartbeat.Deaf)
			r.set(func() { r.mute = false })
			elapse(heartbeat.Deaf + backoff.Last + time.Second)
			if returned != 2 {
				t.Errorf("returned %d times, want twice: at the first stream, and after the silence", returned)
			}
		})
	})
}

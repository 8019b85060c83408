// Package heartbeat says again and again, at the elected replica of cluster, that somebody lives.
//
// In: a client of any replica, and what to say. Out: a stream of beats to the replica that leads, and its
// answers.
//
// Invariants: a replica that does not lead names the one that does, and is left for it. A stream that ends, or on which no
// answer comes for the time of Deaf, is opened anew until the caller's context ends; what is wrong is logged once for as
// long as it stays the same. The package must not know what a beat says, nor judge who is alive.
package heartbeat

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"podwire.dev/internal/backoff"
	"podwire.dev/internal/errs"
)

// Deaf is how long answers may stay away: a connection that carries nothing any more is noticed by the transport only
// after tens of seconds.
const Deaf = 3 * time.Second

var errDeaf = errs.New(errs.Unavailable, "no answer for %s", Deaf)

// Stream is one call of beats with their answers; a gRPC stream in both directions is one.
type Stream[B, A any] interface {
	Send(beat B) error
	Recv() (A, error)
}

// Answer is what a replica answers to a beat.
type Answer interface {
	// GetLeaderTarget is the gRPC target of the replica to turn to instead; empty of the one that leads.
	GetLeaderTarget() string
}

// Heart beats with messages B, which clients C answer with A.
type Heart[C, B any, A Answer] struct {
	// Name is whose heart it is, for errors and the log: "node node-1".
	Name string
	// Service leads to any replica, Dial to the one that is named; nil where there is one replica.
	Service C
	Dial    func(target string) (replica C, done io.Closer, err error)
	// Open begins a stream.
	Open func(ctx context.Context, replica C) (Stream[B, A], error)
	// Every is the time between two beats where there is no News, each value of which is a beat at once; nil for none.
	Every time.Duration
	News  <-chan struct{}
	// Beat makes the n-th beat of a stream, from 1 on. It must not block.
	Beat func(n int64) B
	// Heard gets each answer of a replica that leads. Returned, which may be nil, is called before the first one of a stream.
	Heard    func(answer A)
	Returned func()
	Log      *slog.Logger
}

// Run beats until ctx ends.
func (h *Heart[C, B, A]) Run(ctx context.Context) error {
	var pause backoff.Backoff
	said := ""
	for {
		heard, err := h.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if heard {
			pause.Reset()
			said = ""
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			h.Log.Warn("cluster does not hear "+h.Name+", trying again", "error", err)
		}
		if !pause.Wait(ctx, nil) {
			return nil
		}
	}
}

// follow beats at the service, or at the replica that it names, until the stream ends. heard says whether any answer of
// one that leads came.
func (h *Heart[C, B, A]) follow(ctx context.Context) (heard bool, err error) {
	leader, heard, err := h.stream(ctx, h.Service)
	if leader == "" || h.Dial == nil {
		return heard, err
	}
	replica, conn, err := h.Dial(leader)
	if err != nil {
		return heard, errs.Wrap(err, "heartbeat of %s: elected replica of cluster at %s", h.Name, leader)
	}
	defer conn.Close()
	_, heard, err = h.stream(ctx, replica)
	return heard, err
}

// stream runs one stream. leader is the replica to beat at instead.
func (h *Heart[C, B, A]) stream(ctx context.Context, replica C) (leader string, heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := h.Open(ctx, replica)
	if err != nil {
		return "", false, errs.Wrap(err, "heartbeat of %s", h.Name)
	}
	var last atomic.Int64 // when the last answer came, in nanoseconds since the start
	start := time.Now()
	var sending sync.WaitGroup
	sending.Go(func() {
		h.send(ctx, stream, func() {
			if time.Since(start)-time.Duration(last.Load()) > Deaf {
				cancel(errDeaf)
			}
		})
	})
	defer sending.Wait()
	defer cancel(nil)
	for {
		answer, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, errDeaf) {
				err = cause
			}
			return "", heard, errs.Wrap(err, "heartbeat of %s", h.Name)
		}
		last.Store(int64(time.Since(start)))
		if to := answer.GetLeaderTarget(); to != "" {
			return to, heard, nil
		}
		if !heard && h.Returned != nil {
			h.Returned()
		}
		heard = true
		h.Heard(answer)
	}
}

// send beats until ctx ends or the stream does, which Recv reports. It calls look before each beat.
func (h *Heart[C, B, A]) send(ctx context.Context, stream Stream[B, A], look func()) {
	ticker := time.NewTicker(h.Every)
	defer ticker.Stop()
	for n := int64(1); ; n++ {
		look()
		if err := stream.Send(h.Beat(n)); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-h.News:
		case <-ticker.C:
		}
	}
}

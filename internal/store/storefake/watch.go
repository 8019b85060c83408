package storefake

import (
	"context"
	"fmt"

	"podwire.dev/internal/store/kv"
)

// watcher is one watch. Its fields after ctx are under the engine's lock.
type watcher struct {
	engine  *engine
	done    <-chan struct{}
	cause   func() error
	cancel  context.CancelFunc
	req     kv.WatchRequest
	created kv.Header

	next       int64
	generation int
	progress   int
	asked      bool
}

// Watch implements kv.Engine.
func (e *engine) Watch(ctx context.Context, req kv.WatchRequest) (kv.Watcher, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.reach(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{
		engine: e, done: ctx.Done(), cause: ctx.Err, cancel: cancel, req: req, created: e.header(),
		next: req.From, generation: e.generation, progress: e.progress,
	}
	if w.next == 0 {
		w.next = e.revision + 1
	}
	return w, nil
}

// Created implements kv.Watcher.
func (w *watcher) Created() kv.Header { return w.created }

// Next implements kv.Watcher.
func (w *watcher) Next() (kv.WatchResponse, error) {
	for {
		if err := w.cause(); err != nil {
			return kv.WatchResponse{}, fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
		}
		w.engine.mu.Lock()
		resp, ready, err := w.poll()
		changed := w.engine.changed
		w.engine.mu.Unlock()
		if ready || err != nil {
			return resp, err
		}
		select {
		case <-changed:
		case <-w.done:
		}
	}
}

// poll returns what there is to say, under the lock.
func (w *watcher) poll() (resp kv.WatchResponse, ready bool, err error) {
	e := w.engine
	switch {
	case w.generation != e.generation:
		return resp, false, fmt.Errorf("%w: the connection broke", kv.ErrUnavailable)
	case w.next < e.compacted:
		return resp, false, fmt.Errorf("%w: etcd keeps revision %d and later", kv.ErrCompacted, e.compacted)
	}
	resp.Header = e.header()
	for w.next = max(w.next, firstRevision+1); w.next <= e.revision; w.next++ { // revisions before the first are empty
		for _, key := range e.log[w.next-firstRevision-1] {
			if within(key, w.req.Key, w.req.End) {
				resp.Events = append(resp.Events, e.event(key, w.next))
			}
		}
	}
	if len(resp.Events) > 0 {
		return resp, true, nil
	}
	if w.asked || w.progress != e.progress {
		w.asked, w.progress, resp.Progress = false, e.progress, true
		return resp, true, nil
	}
	return resp, false, nil
}

// event is what a revision did to a key.
func (e *engine) event(key string, rev int64) kv.Event {
	pair, exists := e.at(key, rev)
	out := kv.Event{Action: kv.Put, KV: pair}
	if !exists {
		out.Action = kv.Delete
	}
	if rev-1 >= e.compacted {
		if prev, existed := e.at(key, rev-1); existed {
			out.Prev = &prev
		}
	}
	return out
}

// RequestProgress implements kv.Watcher.
func (w *watcher) RequestProgress(context.Context) error {
	if err := w.cause(); err != nil {
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	w.engine.change(func() { w.asked = true })
	return nil
}

// Close implements kv.Watcher.
func (w *watcher) Close() { w.cancel() }

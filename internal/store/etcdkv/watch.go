package etcdkv

import (
	"context"
	"errors"
	"fmt"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podwire.dev/internal/store/kv"
)

// watcher is one watch on one stream of its own.
type watcher struct {
	stream  pb.Watch_WatchClient
	cancel  context.CancelFunc
	created kv.Header
	// sending holds one token: a gRPC stream allows one sender at a time.
	sending chan struct{}
	// part collects the fragments of one answer.
	part []kv.Event
}

// Watch implements kv.Engine. The stream ends when etcd's member loses its leader, so that a member cut off from the
// others does not keep a watch that shows nothing.
func (e *Engine) Watch(ctx context.Context, req kv.WatchRequest) (kv.Watcher, error) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	w := &watcher{cancel: cancel, sending: make(chan struct{}, 1)}
	if err := w.open(ctx, e, req); err != nil {
		cancel()
		return nil, err
	}
	return w, nil
}

func (w *watcher) open(ctx context.Context, e *Engine, req kv.WatchRequest) (err error) {
	if w.stream, err = e.watchStream(ctx); err != nil {
		return translate(err)
	}
	create := &pb.WatchCreateRequest{
		Key: []byte(req.Key), RangeEnd: []byte(req.End), StartRevision: req.From,
		PrevKv: true, ProgressNotify: true, Fragment: true,
	}
	if req.End == "" {
		create.RangeEnd = nil
	}
	err = w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	if err != nil && !errors.Is(err, io.EOF) { // EOF: Recv has the reason
		return translate(err)
	}
	resp, err := w.stream.Recv()
	if err != nil {
		return ended(err)
	}
	if resp.GetCanceled() {
		return canceled(resp)
	}
	if !resp.GetCreated() {
		return fmt.Errorf("%w: watch was not answered with its creation", kv.ErrUnavailable)
	}
	w.created = header(resp.GetHeader())
	return nil
}

// Created implements kv.Watcher.
func (w *watcher) Created() kv.Header { return w.created }

// Next implements kv.Watcher.
func (w *watcher) Next() (kv.WatchResponse, error) {
	for {
		resp, err := w.stream.Recv()
		if err != nil {
			return kv.WatchResponse{}, ended(err)
		}
		if resp.GetCanceled() || resp.GetCompactRevision() != 0 {
			return kv.WatchResponse{}, canceled(resp)
		}
		for _, ev := range resp.GetEvents() {
			w.part = append(w.part, event(ev))
		}
		if resp.GetFragment() {
			continue
		}
		out := kv.WatchResponse{
			Header: header(resp.GetHeader()), Events: w.part,
			Progress: len(w.part) == 0 && !resp.GetCreated(),
		}
		w.part = nil
		return out, nil
	}
}

// RequestProgress implements kv.Watcher.
func (w *watcher) RequestProgress(ctx context.Context) error {
	select {
	case w.sending <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.sending }()
	return translate(w.stream.Send(&pb.WatchRequest{
		RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}},
	}))
}

// Close implements kv.Watcher.
func (w *watcher) Close() { w.cancel() }

func event(ev *mvccpb.Event) kv.Event {
	out := kv.Event{Action: kv.Put, KV: *keyValue(ev.Kv)}
	if ev.Type == mvccpb.Event_DELETE {
		out.Action = kv.Delete
	}
	if ev.PrevKv != nil {
		out.Prev = keyValue(ev.PrevKv)
	}
	return out
}

// ended is why a stream ended; its end is never an answer.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: etcd ended the watch", kv.ErrUnavailable)
	}
	return translate(err)
}

// canceled is why etcd ended one watch.
func canceled(resp *pb.WatchResponse) error {
	if rev := resp.GetCompactRevision(); rev != 0 {
		return fmt.Errorf("%w: etcd keeps revision %d and later", kv.ErrCompacted, rev)
	}
	return fmt.Errorf("%w: etcd canceled the watch: %s", kv.ErrUnavailable, resp.GetCancelReason())
}

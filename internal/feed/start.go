package feed

import (
	"context"
	"log/slog"
	"strings"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/push"
	"podwire.dev/internal/store"
)

// Host is the process that a service lives in; *daemon.Daemon is one.
type Host interface {
	Go(name string, fn func(context.Context) error)
	OnStop(stage daemon.Stage, name string, stop func(context.Context) error)
	Ready()
	Log() *slog.Logger
}

// Parts are what a service's feed is built from.
type Parts struct {
	Store *store.Store
	// Replica is this process, as others find it.
	Replica store.Replica
	Planner Planner
	// Hub is nil for a service that pushes nothing to nodes: what it has planned, its replicas answer from ([Answers]).
	Hub *push.Hub
}

// Running is a service's feed at work.
type Running struct {
	*Feed
	Leader *Leader
}

// Start runs in goroutines of host whatever a service needs beside its handlers: registration, election, follower, feed,
// writer, watermark. It makes the process ready when the first snapshot is planned (and, without a hub, this replica's
// receipt is in the store), and closes the store last.
func Start(host Host, p Parts) Running {
	leader := NewLeader(p.Store, p.Replica)
	writer := NewWriter(p.Store, leader, host.Log())
	follower := p.Store.Follower(store.FollowOptions{Marks: store.MarkBegin})
	opts := Options{Follower: follower, Planner: p.Planner, Writer: writer, Ready: host.Ready, Log: host.Log()}
	var answers *Answers
	if p.Hub != nil {
		opts.Publisher = p.Hub
	} else {
		answers = NewAnswers(p.Store, p.Replica, leader, host.Log(), host.Ready)
		opts.Publisher, opts.Ready, opts.AnswersFromWorld = answers, nil, true
	}
	f := New(opts)
	host.OnStop(daemon.StageStore, "store", func(context.Context) error { return p.Store.Close() })
	if p.Hub == nil {
		host.Go("receipt", answers.WriteReceipts)
		host.Go("receipts", answers.Follow)
		host.Go("watermark", answers.WriteWatermarks)
	} else {
		host.OnStop(daemon.StagePush, "push", func(ctx context.Context) error { return p.Hub.Close(ctx, "the replica stops") })
		host.Go("watermark", func(ctx context.Context) error {
			return p.Hub.WriteWatermarks(ctx, NewWatermarks(p.Store, leader))
		})
	}
	host.Go("registration", func(ctx context.Context) error { return p.Store.KeepRegistered(ctx, p.Replica) })
	host.Go("election", leader.Run)
	host.Go("writer", writer.Run)
	host.Go("follower", follower.Run)
	host.Go("feed", f.Run)
	return Running{Feed: f, Leader: leader}
}

// ReplicaOf names this process as a replica of a service. The address that it advertises tells replicas apart, and a
// restarted process takes the place of the one before it.
func ReplicaOf(service, advertise string) store.Replica {
	return store.Replica{Service: service, Name: strings.Map(segment, advertise), Address: advertise}
}

// segment keeps a replica's name one segment of a key.
func segment(r rune) rune {
	if r == '/' {
		return '_'
	}
	return r
}

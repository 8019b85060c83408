package api

import (
	"context"
	"log/slog"
	"time"

	"podwire.dev/internal/push"
	"podwire.dev/services/nodeagent/internal/addresses"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/host"
)

// Dataplane is what the kernel holds; *dataplane.Loop is one.
type Dataplane interface {
	Read(ctx context.Context, fn func(dataplane.Tables, dataplane.Stats)) error
}

// Source is one service's slice; *push.Subscriber is one.
type Source interface {
	Status() push.SubscriberStatus
	Accept() bool
}

// Acceptances remembers what was accepted; *push.Accepted is one.
type Acceptances interface {
	Note(identity string, at time.Time, slices []push.SubscriberStatus) error
}

// Settings are the host's.
type Settings interface {
	// Check reads every setting.
	Check() ([]host.State, error)
	// Mended are the settings that somebody else changed lately, and that were put back, sorted by name.
	Mended() []Mending
}

// Mending is what happened to a setting that somebody else changed.
type Mending struct {
	Name string
	// Found is the value that was found last, Wanted the one that it was given again.
	Found, Wanted string
	// Times it was put back since the agent started, the last time at Last.
	Times int
	Last  time.Time
}

// Blocks are the node's leased blocks; *addresses.Allocator is one.
type Blocks interface {
	Blocks() []addresses.Usage
}

// PodCounts counts the node's Pods; *pods.Supervisor is one.
type PodCounts interface {
	Phases() map[string]int
	Problems() []string
}

// Node answers what the node holds and how it fares: an [Inspector].
type Node struct {
	Name, Version string
	Started       time.Time
	Dataplane     Dataplane
	// Sources in the order in which they are shown.
	Sources  []Source
	Accepted Acceptances
	Settings Settings
	Blocks   Blocks
	Pods     PodCounts
	// Writes counts the kernel objects that others than the dataplane changed since the start: links, settings.
	Writes func() int64
	Log    *slog.Logger
}

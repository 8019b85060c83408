package control

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/backoff"
	"podwire.dev/internal/errs"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// AnnotationTarget is the annotation of a Node under which its agent is dialled.
const AnnotationTarget = "podwire.dev/agent-target"

// Self is what a node knows of itself.
type Self struct {
	Name string
	// Underlay are the addresses that other members reach.
	Underlay []netip.Addr
	Labels   map[string]string
	// Target is the gRPC target of the agent.
	Target string
	Info   *objectv1.NodeSystemInfo
}

// Registrar keeps the node's own Node object true.
type Registrar struct {
	Nodes clusterv1.NodeServiceClient
	Self  Self
	Log   *slog.Logger
	// Registered is called once, when the Node is there.
	Registered func()
}

// refresh is how often the Node is looked at again: somebody may have removed it.
const refresh = 30 * time.Second

// Run registers until ctx ends.
func (r *Registrar) Run(ctx context.Context) error {
	var pause backoff.Backoff
	said, told := "", false
	for {
		err := r.register(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if text := err.Error(); text != said {
				said = text
				r.Log.Warn("registering the node failed, trying again", "error", err)
			}
			if !pause.Wait(ctx, nil) {
				return nil
			}
			continue
		}
		pause.Reset()
		said = ""
		if !told {
			told = true
			if r.Registered != nil {
				r.Registered()
			}
		}
		timer := time.NewTimer(refresh)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// register writes the Node and then its status, each only where it differs.
func (r *Registrar) register(ctx context.Context) error {
	held, err := r.get(ctx)
	if err != nil {
		return err
	}
	if want := r.wanted(held); held == nil || !proto.Equal(want, held) {
		req := &clusterv1.NodeServiceApplyRequest{Object: want}
		if held == nil {
			zero := int64(0)
			req.ExpectedRevision = &zero
		}
		resp, err := r.Nodes.Apply(ctx, req)
		if err != nil {
			return errs.Wrap(err, "control: node %s", r.Self.Name)
		}
		held = resp.GetObject()
	}
	want := proto.Clone(held).(*objectv1.Node)
	if want.Status == nil {
		want.Status = &objectv1.NodeStatus{}
	}
	want.Status.Addresses, want.Status.NodeInfo = r.addresses(), r.Self.Info
	if proto.Equal(want, held) {
		return nil
	}
	_, err = r.Nodes.UpdateStatus(ctx, &clusterv1.NodeServiceUpdateStatusRequest{Object: want})
	return errs.Wrap(err, "control: status of node %s", r.Self.Name)
}

// get returns nil where there is no Node yet.
func (r *Registrar) get(ctx context.Context) (*objectv1.Node, error) {
	resp, err := r.Nodes.Get(ctx, &clusterv1.NodeServiceGetRequest{Name: r.Self.Name})
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	return resp.GetObject(), errs.Wrap(err, "control: node %s", r.Self.Name)
}

// wanted is the Node with what this node knows of itself; labels and annotations of others are kept.
func (r *Registrar) wanted(held *objectv1.Node) *objectv1.Node {
	want := &objectv1.Node{ApiVersion: "v1", Kind: "Node", Metadata: &objectv1.ObjectMeta{Name: r.Self.Name}}
	if held != nil {
		want = proto.Clone(held).(*objectv1.Node)
	}
	set := func(m *map[string]string, key, value string) {
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[key] = value
	}
	set(&want.Metadata.Labels, "kubernetes.io/hostname", r.Self.Name)
	set(&want.Metadata.Labels, "kubernetes.io/os", "linux")
	for k, v := range r.Self.Labels {
		set(&want.Metadata.Labels, k, v)
	}
	set(&want.Metadata.Annotations, AnnotationTarget, r.Self.Target)
	return want
}

func (r *Registrar) addresses() []*objectv1.NodeAddress {
	var out []*objectv1.NodeAddress
	for _, a := range r.Self.Underlay {
		out = append(out, &objectv1.NodeAddress{Type: "InternalIP", Address: a.String()})
	}
	return append(out, &objectv1.NodeAddress{Type: "Hostname", Address: r.Self.Name})
}

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"podwire.dev/cmd/podwire/internal/cli/describe"
	"podwire.dev/cmd/podwire/internal/cli/objects"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// findings are what status says about the cluster's objects. Warnings are complete where missing is empty: it says what could
// not be read.
type findings struct {
	members  []*objectv1.Pod
	warnings []string
	missing  []string
}

// findingsTimeout bounds the reading of objects: status is to be fast, and says what it did without.
const findingsTimeout = 800 * time.Millisecond

// maxSecrets bounds the Secrets that are asked for.
const maxSecrets = 50

// find reads the objects that the warnings are about, all kinds at once.
func (a *app) find(ctx context.Context) findings {
	ctx, cancel := context.WithTimeout(ctx, findingsTimeout)
	defer cancel()
	r := &reader{app: a}
	var c describe.Cluster
	var pods []*objectv1.Pod
	var wg sync.WaitGroup
	wg.Go(func() { pods = readAll[*objectv1.Pod](ctx, r, "pod", "kube-system") })
	wg.Go(func() { c.Policies = readAll[*objectv1.NetworkPolicy](ctx, r, "networkpolicy", "kube-system") })
	wg.Go(func() { c.Services = readAll[*objectv1.Service](ctx, r, "service", "") })
	wg.Go(func() { c.Slices = readAll[*objectv1.EndpointSlice](ctx, r, "endpointslice", "") })
	wg.Go(func() {
		c.Classes = readAll[*objectv1.IngressClass](ctx, r, "ingressclass", "")
		c.Ingresses = readAll[*objectv1.Ingress](ctx, r, "ingress", "")
		c.Absent = r.absentSecrets(ctx, c.Ingresses)
	})
	wg.Wait()
	for _, p := range pods {
		if describe.Member(p) != "" {
			c.Members = append(c.Members, p)
		}
	}
	slices.SortFunc(c.Members, func(x, y *objectv1.Pod) int {
		return strings.Compare(x.GetMetadata().GetName(), y.GetMetadata().GetName())
	})
	return findings{members: c.Members, warnings: describe.Findings(c), missing: r.sorted()}
}

// reader reads for find, and notes what it cannot.
type reader struct {
	*app
	mu     sync.Mutex
	failed []string
}

func (r *reader) fail(what string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, what+": "+err.Error())
}

func (r *reader) sorted() []string {
	slices.Sort(r.failed)
	return r.failed
}

// readAll lists a kind in a namespace, or in all where it is empty; nil where it cannot.
func readAll[O manifest.Message](ctx context.Context, r *reader, kind, namespace string) []O {
	k, err := r.kind(kind)
	if err != nil {
		r.fail(kind, err)
		return nil
	}
	c := r.connections() // one each: they are used at once
	defer c.close()
	list, _, err := c.objects().List(ctx, k, objects.Selection{Namespace: namespace, AllNamespaces: namespace == ""})
	if err != nil {
		r.fail(k.Plural, err)
		return nil
	}
	out := make([]O, 0, len(list))
	for _, m := range list {
		if o, ok := m.(O); ok {
			out = append(out, o)
		}
	}
	return out
}

// absentSecrets are the Secrets of Ingresses that do not exist. Of one that may not be read nothing is known.
func (r *reader) absentSecrets(ctx context.Context, ingresses []*objectv1.Ingress) map[string]bool {
	out := map[string]bool{}
	k, err := r.kind("secret")
	if err != nil {
		r.fail("secret", err)
		return out
	}
	var names []string
	for _, in := range ingresses {
		names = append(names, describe.SecretsOf(in)...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > maxSecrets {
		names = names[:maxSecrets]
	}
	c := r.connections()
	defer c.close()
	for _, name := range names {
		ns, secret, _ := strings.Cut(name, "/")
		if _, err := c.objects().Get(ctx, k, ns, secret); errs.Is(err, errs.NotFound) {
			out[name] = true
		}
	}
	return out
}

// maxWarnings bounds what people are shown; -o json has all.
const maxWarnings = 20

// lines are the warnings for people.
func (f findings) lines() []string {
	out := f.warnings
	if n := len(out) - maxWarnings; n > 0 {
		out = append(slices.Clone(out[:maxWarnings]), fmt.Sprintf("and %d more warnings (`podwire status -o json` has all)", n))
	}
	for _, m := range f.missing {
		out = append(out, "objects were not looked through: "+m)
	}
	return out
}

// memberAddresses are a member's addresses in the fabric, and those of its host.
func memberAddresses(p *objectv1.Pod) (fabric, underlay []string) {
	for _, ip := range p.GetStatus().GetPodIps() {
		fabric = append(fabric, ip.GetIp())
	}
	for _, ip := range p.GetStatus().GetHostIps() {
		underlay = append(underlay, ip.GetIp())
	}
	return fabric, underlay
}

// notReady is why a Pod is not Ready; empty where it is, or nobody says.
func notReady(p *objectv1.Pod) string {
	for _, c := range p.GetStatus().GetConditions() {
		if c.GetType() == "Ready" && c.GetStatus() != "True" {
			return or(c.GetMessage(), c.GetReason())
		}
	}
	return ""
}

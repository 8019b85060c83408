package manifest_test

import (
	"strings"
	"testing"

	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func TestRegistry(t *testing.T) {
	r := builtin(t)
	for _, c := range []struct {
		names      string
		apiVersion string
		kind       string
		storeKind  string
		owner      string
		scope      manifest.Scope
	}{
		{"ns namespace namespaces Namespace", "v1", "Namespace", "namespaces", "cluster", manifest.ClusterScoped},
		{"no node nodes", "v1", "Node", "nodes", "cluster", manifest.ClusterScoped},
		{"po pod pods Pod", "v1", "Pod", "pods", "cluster", manifest.Namespaced},
		{"svc service services", "v1", "Service", "services", "svcproxy", manifest.Namespaced},
		{
			"eps endpointslice endpointslices endpointslices.discovery.k8s.io endpointslice.discovery.k8s.io",
			"discovery.k8s.io/v1", "EndpointSlice", "endpointslices.discovery.k8s.io", "svcproxy", manifest.Namespaced,
		},
		{
			"netpol networkpolicy networkpolicies NetworkPolicy networkpolicies.networking.k8s.io",
			"networking.k8s.io/v1", "NetworkPolicy", "networkpolicies.networking.k8s.io", "policy", manifest.Namespaced,
		},
		{
			"ing ingress ingresses Ingress ingresses.networking.k8s.io",
			"networking.k8s.io/v1", "Ingress", "ingresses.networking.k8s.io", "ingress", manifest.Namespaced,
		},
		{
			"ingressclass ingressclasses IngressClass ingressclasses.networking.k8s.io",
			"networking.k8s.io/v1", "IngressClass", "ingressclasses.networking.k8s.io", "ingress", manifest.ClusterScoped,
		},
		{"secret secrets Secret", "v1", "Secret", "secrets", "ingress", manifest.Namespaced},
		{"addressblocks", "ipam.podwire.dev/v1", "AddressBlock", "addressblocks.ipam.podwire.dev", "ipam", manifest.ClusterScoped},
		{"addressclaims", "ipam.podwire.dev/v1", "AddressClaim", "addressclaims.ipam.podwire.dev", "ipam", manifest.ClusterScoped},
	} {
		k, ok := r.Lookup(c.apiVersion, c.kind)
		if !ok || k.StoreKind() != c.storeKind || k.Owner != c.owner || k.Scope != c.scope || k.APIVersion() != c.apiVersion {
			t.Errorf("%s %s: %+v", c.apiVersion, c.kind, k)
		}
		if by, ok := r.ByStoreKind(c.storeKind); !ok || by.Name != c.kind {
			t.Errorf("%s: by store kind %+v", c.kind, by)
		}
		if of, ok := r.Of(k.New()); !ok || of.Name != c.kind {
			t.Errorf("%s: by message %+v", c.kind, of)
		}
		for _, name := range strings.Fields(c.names) {
			if by, ok := r.ByName(name); !ok || by.Name != c.kind {
				t.Errorf("%s: by name %s %+v", c.kind, name, by)
			}
		}
	}
	if len(r.Kinds()) != 11 {
		t.Errorf("%d kinds", len(r.Kinds()))
	}
	if _, ok := r.Of(&objectv1.LabelSelector{}); ok {
		t.Error("a selector is no object")
	}
}

func TestRegistryRefuses(t *testing.T) {
	pod := func() manifest.Message { return &objectv1.Pod{} }
	a := manifest.Kind{Version: "v1", Name: "Pod", Singular: "pod", Plural: "pods", New: pod}
	b := manifest.Kind{Version: "v1", Name: "Pot", Singular: "pot", Plural: "pots", ShortNames: []string{"pod"}, New: pod}
	for want, kinds := range map[string][]manifest.Kind{
		"kind v1 Pod is registered twice": {a, a},
		`"pod" names both Pod and Pot`:    {a, b},
	} {
		if _, err := manifest.NewRegistry(kinds...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

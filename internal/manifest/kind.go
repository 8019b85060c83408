package manifest

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Message is what every object message of proto/podwire/object/v1 is.
type Message interface {
	proto.Message
	GetApiVersion() string
	GetKind() string
	GetMetadata() *objectv1.ObjectMeta
}

// Scope says whether a kind's names are unique within a namespace or within the
// cluster.
type Scope uint8

// The scopes.
const (
	Namespaced Scope = iota + 1
	ClusterScoped
)

// Kind describes one kind of object.
type Kind struct {
	// Group is the API group; empty for the core group.
	Group string
	// Version is the API version, as in v1.
	Version string
	// Name is the kind as manifests write it, as in NetworkPolicy.
	Name string
	// Singular and Plural are the lower-case names of the command line.
	Singular, Plural string
	// ShortNames are further names of the command line, as in netpol.
	ShortNames []string
	// Scope says where names are unique.
	Scope Scope
	// Owner is the service that alone writes this kind.
	Owner string
	// Phase orders a set of objects for apply, lowest first: what others need
	// to exist has the lower phase.
	Phase int
	// Sensitive says that errors must not quote values of the kind's objects, apart
	// from apiVersion, kind and metadata.
	Sensitive bool
	// New makes an empty message of the kind.
	New func() Message
}

// APIVersion is the value of apiVersion in a manifest: group/version, or the
// version alone for the core group.
func (k Kind) APIVersion() string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

// StoreKind is the kind's name in the store's keys: <plural>[.<group>].
func (k Kind) StoreKind() string {
	if k.Group == "" {
		return k.Plural
	}
	return k.Plural + "." + k.Group
}

// Phases of the built-in kinds.
const (
	phaseNamespaces = iota
	phaseNodes
	phaseNamed // what others name, and are of little use without
	phaseRest
	phaseRoutes // so that no route is open before what it leads to, nor after
)

// Builtin is the registry of the kinds that Podwire has. A further kind takes a
// message in object/v1, an entry here and, if it is Kubernetes', the fields of its
// types in kubernetes.txt.
func Builtin() (*Registry, error) {
	return NewRegistry(
		Kind{
			Version: "v1", Name: "Namespace", Singular: "namespace", Plural: "namespaces", ShortNames: []string{"ns"},
			Scope: ClusterScoped, Owner: "cluster", Phase: phaseNamespaces, New: func() Message { return &objectv1.Namespace{} },
		},
		Kind{
			Version: "v1", Name: "Node", Singular: "node", Plural: "nodes", ShortNames: []string{"no"},
			Scope: ClusterScoped, Owner: "cluster", Phase: phaseNodes, New: func() Message { return &objectv1.Node{} },
		},
		Kind{
			Version: "v1", Name: "Pod", Singular: "pod", Plural: "pods", ShortNames: []string{"po"},
			Scope: Namespaced, Owner: "cluster", Phase: phaseRest, New: func() Message { return &objectv1.Pod{} },
		},
		Kind{
			Version: "v1", Name: "Service", Singular: "service", Plural: "services", ShortNames: []string{"svc"},
			Scope: Namespaced, Owner: "svcproxy", Phase: phaseRest, New: func() Message { return &objectv1.Service{} },
		},
		Kind{
			Group: "discovery.k8s.io", Version: "v1", Name: "EndpointSlice", Singular: "endpointslice", Plural: "endpointslices",
			ShortNames: []string{"eps"}, Scope: Namespaced, Owner: "svcproxy", Phase: phaseRest,
			New: func() Message { return &objectv1.EndpointSlice{} },
		},
		Kind{
			Group: "networking.k8s.io", Version: "v1", Name: "NetworkPolicy", Singular: "networkpolicy", Plural: "networkpolicies",
			ShortNames: []string{"netpol"}, Scope: Namespaced, Owner: "policy", Phase: phaseRest,
			New: func() Message { return &objectv1.NetworkPolicy{} },
		},
		Kind{
			Group: "networking.k8s.io", Version: "v1", Name: "Ingress", Singular: "ingress", Plural: "ingresses",
			ShortNames: []string{"ing"}, Scope: Namespaced, Owner: "ingress", Phase: phaseRoutes,
			New: func() Message { return &objectv1.Ingress{} },
		},
		Kind{
			Group: "networking.k8s.io", Version: "v1", Name: "IngressClass", Singular: "ingressclass", Plural: "ingressclasses",
			Scope: ClusterScoped, Owner: "ingress", Phase: phaseNamed, New: func() Message { return &objectv1.IngressClass{} },
		},
		Kind{
			Version: "v1", Name: "Secret", Singular: "secret", Plural: "secrets",
			Scope: Namespaced, Owner: "ingress", Phase: phaseNamed, Sensitive: true, New: func() Message { return &objectv1.Secret{} },
		},
		Kind{
			Group: "ipam.podwire.dev", Version: "v1", Name: "AddressBlock", Singular: "addressblock", Plural: "addressblocks",
			Scope: ClusterScoped, Owner: "ipam", Phase: phaseRest, New: func() Message { return &objectv1.AddressBlock{} },
		},
		Kind{
			Group: "ipam.podwire.dev", Version: "v1", Name: "AddressClaim", Singular: "addressclaim", Plural: "addressclaims",
			Scope: ClusterScoped, Owner: "ipam", Phase: phaseRest, New: func() Message { return &objectv1.AddressClaim{} },
		},
	)
}

// Registry is the set of kinds that a program knows. It does not change after
// NewRegistry and may be shared.
type Registry struct {
	kinds  []Kind
	byGVK  map[string]Kind
	byName map[string]Kind
	schema schema
}

// NewRegistry makes a registry. It fails if two kinds share a name, or if a
// message lacks the fields of an object.
func NewRegistry(kinds ...Kind) (*Registry, error) {
	s, err := loadSchema()
	if err != nil {
		return nil, err
	}
	r := &Registry{
		kinds: slices.Clone(kinds), byGVK: make(map[string]Kind), byName: make(map[string]Kind), schema: s,
	}
	for _, k := range kinds {
		gvk := k.APIVersion() + " " + k.Name
		if _, dup := r.byGVK[gvk]; dup {
			return nil, fmt.Errorf("manifest: kind %s is registered twice", gvk)
		}
		r.byGVK[gvk] = k
		names := append([]string{k.Singular, k.Plural, strings.ToLower(k.Name)}, k.ShortNames...)
		if k.Group != "" {
			names = append(names, k.StoreKind(), k.Singular+"."+k.Group)
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if other, dup := r.byName[name]; dup {
				return nil, fmt.Errorf("manifest: %q names both %s and %s", name, other.Name, k.Name)
			}
			r.byName[name] = k
		}
		for _, field := range []string{"apiVersion", "kind", "metadata"} {
			if k.New().ProtoReflect().Descriptor().Fields().ByJSONName(field) == nil {
				return nil, fmt.Errorf("manifest: message of kind %s has no field %s", k.Name, field)
			}
		}
	}
	return r, nil
}

// Kinds lists the kinds in the order of registration.
func (r *Registry) Kinds() []Kind { return slices.Clone(r.kinds) }

// Lookup finds a kind by what a manifest says.
func (r *Registry) Lookup(apiVersion, kind string) (Kind, bool) {
	k, ok := r.byGVK[apiVersion+" "+kind]
	return k, ok
}

// ByName finds a kind by any of its names on the command line, in any case:
// singular, plural, short, or with the group appended (networkpolicies.networking.k8s.io).
func (r *Registry) ByName(name string) (Kind, bool) {
	k, ok := r.byName[strings.ToLower(name)]
	return k, ok
}

// ByStoreKind finds a kind by its name in the store's keys.
func (r *Registry) ByStoreKind(storeKind string) (Kind, bool) {
	for _, k := range r.kinds {
		if k.StoreKind() == storeKind {
			return k, true
		}
	}
	return Kind{}, false
}

// Of finds the kind of a message by its Go type, whatever its apiVersion and kind
// fields say.
func (r *Registry) Of(m proto.Message) (Kind, bool) {
	want := m.ProtoReflect().Descriptor().FullName()
	for _, k := range r.kinds {
		if k.New().ProtoReflect().Descriptor().FullName() == want {
			return k, true
		}
	}
	return Kind{}, false
}

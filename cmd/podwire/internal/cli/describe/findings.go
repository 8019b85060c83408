package describe

import (
	"fmt"
	"slices"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// memberAnnotation marks the Pod of a fabric member that is no node; such Pods are in memberNamespace.
const (
	memberAnnotation = "podwire.dev/member"
	memberNamespace  = "kube-system"
)

// Cluster is what [Findings] looks through. A list that is nil was not read: nothing is said that rests on it.
type Cluster struct {
	// Members are the Pods of fabric members that are no nodes; Policies those of their namespace.
	Members  []*objectv1.Pod
	Policies []*objectv1.NetworkPolicy
	// Services, Slices, Ingresses and Classes are all of the cluster.
	Services  []*objectv1.Service
	Slices    []*objectv1.EndpointSlice
	Ingresses []*objectv1.Ingress
	Classes   []*objectv1.IngressClass
	// Absent are the Secrets, as <namespace>/<name>, that are known not to exist.
	Absent map[string]bool
}

// Member is the service of the fabric member that a Pod stands for; empty for any other Pod.
func Member(p *objectv1.Pod) string {
	if p.GetMetadata().GetNamespace() != memberNamespace {
		return ""
	}
	return p.GetMetadata().GetAnnotations()[memberAnnotation]
}

// Ready says whether a Pod's condition Ready is True.
func Ready(p *objectv1.Pod) bool { return podReady(p) }

// Findings are what of a cluster's objects does not do what it seems to: policies that select fabric members, Services
// without endpoints, and Ingresses that name what is not there. One line each, in order.
func Findings(c Cluster) []string {
	var out []string
	for _, o := range c.Policies {
		out = append(out, selectsMembers(o, c.Members)...)
	}
	out = append(out, withoutEndpoints(c)...)
	if c.Services == nil || c.Classes == nil {
		return sorted(out)
	}
	there := map[string]bool{}
	for _, s := range c.Services {
		there[s.GetMetadata().GetNamespace()+"/"+s.GetMetadata().GetName()] = true
	}
	for _, o := range c.Ingresses {
		if ours(o, c.Classes) {
			out = append(out, dangling(o, there, c.Absent)...)
		}
	}
	return sorted(out)
}

func sorted(lines []string) []string {
	slices.Sort(lines)
	return slices.Compact(lines)
}

// withoutEndpoints are the Services that nobody answers for.
func withoutEndpoints(c Cluster) []string {
	if c.Slices == nil {
		return nil
	}
	served := map[string]bool{}
	for _, s := range c.Slices {
		name := s.GetMetadata().GetNamespace() + "/" + s.GetMetadata().GetLabels()[labelService]
		for _, e := range s.GetEndpoints() {
			// One that is ending still serves where none is ready (KEP-1669).
			served[name] = served[name] || e.GetConditions() == nil || e.GetConditions().Ready == nil ||
				e.GetConditions().GetReady() || e.GetConditions().GetServing()
		}
	}
	var out []string
	for _, s := range c.Services {
		name := s.GetMetadata().GetNamespace() + "/" + s.GetMetadata().GetName()
		// That of the API has endpoints only where something serves the API.
		if served[name] || s.GetSpec().GetType() == "ExternalName" || name == "default/kubernetes" {
			continue
		}
		what := "connections to it are refused"
		if s.GetSpec().GetClusterIp() == "None" {
			what = "its name resolves to nothing"
		}
		out = append(out, fmt.Sprintf("Service %s has no ready endpoint: %s", name, what))
	}
	return out
}

func selectsMembers(o *objectv1.NetworkPolicy, members []*objectv1.Pod) []string {
	var names []string
	for _, p := range members {
		if p.GetMetadata().GetNamespace() == o.GetMetadata().GetNamespace() && matches(o.GetSpec().GetPodSelector(), p.GetMetadata().GetLabels()) {
			names = append(names, p.GetMetadata().GetName())
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return []string{fmt.Sprintf("NetworkPolicy %s/%s selects %s, and does not isolate it: no agent stands before a fabric member, the policy is a peer's only",
		o.GetMetadata().GetNamespace(), o.GetMetadata().GetName(), strings.Join(names, ", "))}
}

// ours says whether an Ingress is of a class that Podwire serves.
func ours(o *objectv1.Ingress, classes []*objectv1.IngressClass) bool {
	name := classOf(o)
	return slices.ContainsFunc(classes, func(c *objectv1.IngressClass) bool {
		return c.GetSpec().GetController() == controller && (c.GetMetadata().GetName() == name || name == "" && isDefault(c))
	})
}

// dangling are the names in an Ingress that lead to nothing.
func dangling(o *objectv1.Ingress, services, absent map[string]bool) []string {
	ns := o.GetMetadata().GetNamespace()
	var out []string
	service := func(b *objectv1.IngressBackend) {
		if name := b.GetService().GetName(); name != "" && !services[ns+"/"+name] {
			out = append(out, fmt.Sprintf("Ingress %s/%s names Service %s, which does not exist: requests get 503", ns, o.GetMetadata().GetName(), name))
		}
	}
	service(o.GetSpec().GetDefaultBackend())
	for _, r := range o.GetSpec().GetRules() {
		for _, p := range r.GetHttp().GetPaths() {
			service(p.GetBackend())
		}
	}
	for _, name := range SecretsOf(o) {
		if absent[name] {
			out = append(out, fmt.Sprintf("Ingress %s/%s names Secret %s, which does not exist: the ingress' own certificate is presented",
				ns, o.GetMetadata().GetName(), strings.TrimPrefix(name, ns+"/")))
		}
	}
	return out
}

// SecretsOf are the Secrets that an Ingress names, as <namespace>/<name>.
func SecretsOf(o *objectv1.Ingress) []string {
	var out []string
	for _, t := range o.GetSpec().GetTls() {
		if t.GetSecretName() != "" {
			out = append(out, o.GetMetadata().GetNamespace()+"/"+t.GetSecretName())
		}
	}
	return out
}

package nodestate

// ServiceMember is the name of a fabric member that is no node, a replica of dns or ingress: that of its Pod with the
// Namespace, so that a Node of the same name is another member, with another MAC.
func ServiceMember(name string) string { return "kube-system/" + name }
